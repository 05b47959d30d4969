"""Rules for LLaMA-Factory's data sets and templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.dataset_info import read_dataset
from tunesmith.data.source import Source, settle_source
from tunesmith.data.sources.files import DATASET_INFO
from tunesmith.templates.library import template_names

if TYPE_CHECKING:
    from tunesmith.recipe.importing.translation import Translation

# Their name -> ours, where that is another; a named template is for a model without one of its own.
_NAMES = {
    "bailing_v2": "ling",
    "chatml_de": "chatml",
    "cohere": "command_r",
    "deepseek3": "deepseek_v3",
    "deepseekcoder": "deepseek_coder",
    "empty": "plain",
    "gemma2": "gemma",
    "intern2": "internlm2",
    "ministral": "mistral_tekken",
    "mistral": "mistral_v3",
    "mistral_small": "mistral_v7",
    "moonlight": "kimi",
    "openchat-3.6": "openchat_3_6",
    "phi": "phi3",
    "qwen3_nothink": "qwen3",
    "telechat2": "telechat",
}
# plain text for base models: who names one of these means it, even where it is not known what the model has
_PLAIN = ("alpaca", "empty", "vicuna")


def data(t: Translation) -> None:
    """Translate data sets by name; LLaMA-Factory reads their descriptions in ``dataset_dir/dataset_info.json``."""
    train = _sources(t, "dataset")
    if t.value("mix_strategy") != "concat" and len(train) > 1:
        t.refuse("mix_strategy", "sources are read one after the other and shuffled; weights are not there yet")
    t.put("data.train", train, "dataset")
    if t.said("eval_dataset"):
        t.put("data.validation", _sources(t, "eval_dataset"), "eval_dataset")
    size = t.value("val_size")
    if size and t.said("eval_dataset"):
        t.refuse("val_size", "val_size and eval_dataset exclude each other", "keep one of them", fatal=True)
    elif size > 1:
        _hold_out_some(t, train, int(size))
    elif size:
        t.put("data.validation_share", size, "val_size")


def _sources(t: Translation, name: str) -> list[Any]:
    folder, take = t.value("dataset_dir"), t.value("max_samples")
    found: list[Any] = []
    if folder.startswith("REMOTE:"):
        t.refuse("dataset_dir", f"{folder} is not read", f"download its {DATASET_INFO} and name the folder", fatal=True)
    place = _find(t, folder)
    for each in t.value(name):
        source: dict[str, Any] = {"path": each} if folder == "ONLINE" else {"path": str(place), "dataset": each}
        if take is not None:
            source["take"] = min(take, _own_number(source) or take)
        found.append(source["path"] if list(source) == ["path"] else source)
    if take is not None:
        t.made_of.setdefault("data.train", []).append("max_samples")
    return found


def _find(t: Translation, folder: str) -> Path:
    """Return where *folder* is: LLaMA-Factory looks in the current folder; else it may lie beside the file."""
    here = Path(folder)
    if here.exists() or here.is_absolute():
        return here
    beside = [parent / folder for parent in (t.folder, *t.folder.absolute().parents) if (parent / folder).is_dir()]
    if beside and (beside[0] / DATASET_INFO).is_file():
        t.explain("dataset_dir", f"there is no {folder} in the current folder, but {beside[0]}", "data.train")
        return beside[0]
    return here


def _own_number(source: dict[str, Any]) -> int | None:
    """Return how many rows ``dataset_info.json`` itself takes; a wrong description is told when it is read."""
    path = Path(source["path"])
    try:
        settings = read_dataset(path if path.is_file() else path / DATASET_INFO, source.get("dataset", ""))
    except DataError:
        return None
    number: int | None = settings.get("take")
    return number


def _hold_out_some(t: Translation, sources: list[Any], count: int) -> None:
    try:
        rows = sum(_count(Source.model_validate(source)) for source in sources)
    except (RecipeError, DataError, ValidationError):
        rows = 0
    if rows > count:
        note = f"{count} of {rows} rows"
        t.put("data.validation_share", round(count / rows, 6), "val_size", note=note)
    else:
        why = f"{count} of how many is not known before the data is here" if not rows else f"there are {rows} rows"
        t.refuse("val_size", why, "say which share, such as data.validation_share=0.05")


def _count(source: Source) -> int:
    settled = settle_source(source, "data.train", use_hub=False)
    if settled is None:
        raise DataError("not here")
    rows = sum(1 for part in settled.parts for _ in part.rows())
    return min(rows, settled.source.take or rows)


def template(t: Translation) -> None:
    """Translate the template: the model's own is the truth, a named one is for models that have none."""
    asked = t.value("template")
    name = "auto" if asked is None else _choose_template(t, asked)
    if name:
        t.put("template.name", name, "template")
    if t.said("enable_thinking") and not t.value("enable_thinking"):
        t.put("template.arguments.enable_thinking", False, "enable_thinking")
    if t.value("preserve_thinking"):
        t.put("template.arguments.preserve_thinking", True, "preserve_thinking")


def _choose_template(t: Translation, asked: str) -> str:
    ours = _NAMES.get(asked, asked)
    ours = ours if ours in template_names() else ""
    own = _has_own(str(t.value("model_name_or_path")))
    if own or (own is None and not (ours and asked in _PLAIN)):
        known = f" (for a base model without one: template={ours})" if ours else ""
        t.explain("template", f"{asked}: the model's own template is used, as when it is served{known}", "template")
        return "auto"
    if not ours:
        why = f"{asked} has no equal, and the model has no template of its own"
        t.refuse("template", why, "template=NAME, one of `tunesmith list templates`")
        return ""
    if own is None:
        note = f"if the model has a template of its own, leave this out: {asked} is for base models"
        t.explain("template", note, "template")
    return ours


def _has_own(model: str) -> bool | None:
    """Say whether the model in a folder has a chat template; ``None`` for one of the Hub, which is not asked."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    if (folder / "chat_template.jinja").exists():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(isinstance(config, dict) and config.get("chat_template"))
