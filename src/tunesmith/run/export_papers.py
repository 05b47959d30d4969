"""What goes with an exported model: a card, a Modelfile, and what was found when it was held against its run."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import yaml

from tunesmith import __version__
from tunesmith.core.errors import UserError
from tunesmith.core.files import write_json, write_text
from tunesmith.models.families import family_of
from tunesmith.models.load import find_model
from tunesmith.run.folder import RunFolder
from tunesmith.run.modelfile import write_modelfile
from tunesmith.run.verify import as_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.run.verify import Parity
    from tunesmith.templates.chat import ChatTemplate

FILE = "tunesmith.json"
# what the Hub calls the licences of the table of families
_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "Gemma": "gemma",
    "Llama 2 Community": "llama2",
    "Llama 3 Community": "llama3",
    "Llama 3.1 Community": "llama3.1",
    "Llama 3.2 Community": "llama3.2",
    "Llama 3.3 Community": "llama3.3",
    "Llama 4 Community": "llama4",
}


def write_papers(
    folder: Path, path: str, target: Path, template: ChatTemplate, found: Sequence[Parity], *, ollama: bool = True
) -> None:
    """Write card, Modelfile (where *ollama* can read the weights) and certificate into *folder*, soon *target*."""
    note = "Ollama does not read weights of this type"
    if ollama:
        try:
            begin = template.tokenizer.bos_token_id
            begins = begin is not None and template.tokenizer("a")["input_ids"][:1] == [begin]
            write_text(folder / "Modelfile", write_modelfile(template, ".", begins=begins))
            note = ""
        except UserError as error:
            note = str(error)
    write_json(folder / FILE, certificate(path, found, note))
    write_text(folder / "README.md", card(path, target, found))


def write_head_papers(folder: Path, path: str, target: Path, loader: str, probes: int, apart: float) -> None:
    """Write card and certificate of a model that gives numbers, loaded by transformers' *loader*, into *folder*.

    Of so many *probes* its numbers were *apart* from the run's at most, before they were rounded to the files' type.
    """
    parity = {"probes": probes, "largest_difference": apart}
    write_json(folder / FILE, {**certificate(path, ()), "parity": parity})
    held = f"Of {probes} probes its numbers differ from the run's by {apart:.2g} at most, before rounding to this type."
    use = f"from transformers import {loader}\n\nmodel = {loader}.from_pretrained({target.name!r})"
    kind = "token-classification" if "Token" in loader else "text-classification"
    write_text(folder / "README.md", _card(path, target, kind, held, f"```python\n{use}\n```"))


def write_gguf_papers(path: str, target: Path, template: ChatTemplate, parity: Parity) -> None:
    """Write a Modelfile, where there can be one, and the certificate beside the GGUF file *target*."""
    note = ""
    try:
        begin = template.tokenizer.bos_token_id
        begins = begin is not None and template.tokenizer("a")["input_ids"][:1] == [begin]
        text = write_modelfile(template, f"./{target.name}", begins=begins)
        write_text(target.with_suffix(".Modelfile"), text)
    except UserError as error:
        note = str(error)
    write_json(target.with_suffix(".json"), certificate(path, [parity], note))


def certificate(path: str, found: Sequence[Parity], note: str = "") -> dict[str, Any]:
    """Return what an export was made of, and how it compares with that."""
    place = find_model(path)
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "tunesmith": __version__,
        "from": path,
        "base": place.base,
        "adapters": [str(each) for each in place.adapters],
        "parity": as_json(found),
        **({"modelfile": note} if note else {}),
    }


def vllm_command(folder: Path) -> str:
    """Return the command by which vLLM serves the model in *folder*."""
    return (
        f"vllm serve {quote(str(folder))} --served-model-name {quote(folder.resolve().name)} --generation-config auto"
    )


def card(path: str, target: Path, found: Sequence[Parity]) -> str:
    """Return a model card: what it was made of, with which settings, how it was judged, under which licence."""
    held = "| form | same prompts | same likeliest tokens | mean log-probability difference |\n|---|---|---|---|\n"
    use = f"```bash\n{vllm_command(Path(target.name))}\n```"
    return _card(path, target, "text-generation", held + "\n".join(map(_row, found)), use)


def _card(path: str, target: Path, kind: str, held: str, use: str) -> str:
    """Return the card of a model that the Hub calls a *kind*."""
    place = find_model(path)
    run = RunFolder(Path(path))
    family = family_of(place.base)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": kind, "tags": ["tunesmith"]}
    if family is not None:
        head["base_model"] = place.base
        if family.licence in _LICENCES:
            head["license"] = _LICENCES[family.licence]
    parts = [
        f"---\n{yaml.safe_dump(head, allow_unicode=True, sort_keys=False)}---",
        f"# {target.resolve().name}",
        f"Made with Tunesmith {__version__} from `{_shown(place.base)}`.",
        *(_of_run(run) if run.is_run else ()),
        f"## Held against the run\n\n{held}",
        f"## Use\n\n{use}",
        "## Licence\n\n" + _licence(place.base, family.licence if family is not None else ""),
    ]
    return "\n\n".join(parts) + "\n"


def _row(parity: Parity) -> str:
    difference = "" if parity.mean_difference is None else f"{parity.mean_difference:.2g}"
    return (
        f"| {Path(parity.name).name} | {parity.prompts} of {parity.probes} | {parity.same} of {parity.tokens} "
        f"| {difference} |"
    )


def _shown(path: str) -> str:
    """Return a name on a hub as it is, and of a folder its own name: where it lies is nobody's business."""
    folder = Path(path)
    if not folder.exists():
        return path
    return folder.resolve().parent.name if folder.name == "weights" else folder.resolve().name


def _licence(base: str, known: str) -> str:
    said = f"`{_shown(base)}` is under: {known}." if known else f"The licence of `{_shown(base)}` is not known here."
    return f"{said} Its terms hold for what is made of it; so do those of the training data, which nobody has checked."


def _of_run(run: RunFolder) -> list[str]:
    """Return the parts of a card that a run's folder tells."""
    # as it was written: what it names may be elsewhere by now
    asked = yaml.safe_load((run.path / "recipe.yaml").read_text("utf-8")) or {}
    files = ((run.read("manifest.json") or {}).get("data") or {}).get("files") or []
    settings = {key: value for key, value in asked.items() if key not in ("output", "model", "data")}
    parts = [
        "## Data\n\n"
        + ("\n".join(f"- `{Path(f['path']).name}`, SHA-256 `{f['sha256']}`" for f in files) or "Not told."),
        f"## Settings\n\n```yaml\n{yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)}```",
    ]
    judged = run.read("evaluation.json") or {}
    if judged.get("models"):
        models = judged["models"]
        measured = {"loss": judged.get("loss", {}), **judged.get("scores", {})}
        rows = [
            f"| {name} | " + " | ".join(f"{values[m]:.4g}" if values.get(m) is not None else "" for m in models) + " |"
            for name, values in measured.items()
        ]
        head = (
            f"| on {judged.get('examples')} held-out examples | {' | '.join(models)} |\n|{'---|' * (len(models) + 1)}"
        )
        parts.append("## Evaluation\n\n" + "\n".join([head, *rows]))
    return parts
