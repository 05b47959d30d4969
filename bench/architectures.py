"""Every causal language model of the installed transformers: a tiny random one through all that a run does.

    python bench/architectures.py [--only llama,gpt2] [--write docs/reference/architectures.md]

An architecture is proven if a tiny model of it goes through training and export as any other would: packed rows have
the gradients of padded ones (or the engine says why it pads), LoRA finds something in every block, three steps reduce
the loss, and what is saved, loaded and merged continues texts with the same tokens.  What is left out stands in
``LEFT_OUT`` of tiny_models.py with its why.  A fault ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from tiny_models import architectures, left_out, tiny_model, tiny_tokenizer

from tunesmith.core.errors import UserError
from tunesmith.core.files import read_jsonl, write_text
from tunesmith.core.settings import prepare_process
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.export import export
from tunesmith.run.folder import RunFolder
from tunesmith.run.settle import settle
from tunesmith.run.train import train

_WORDS = ("mist", "hill", "pine tree", "moon", "a boat on the river", "rain")
_ROWS = [
    {"instruction": "Say it again.", "input": f"{word} {index}", "output": f"{word} {index}."}
    for index, word in enumerate(_WORDS)
]
_ROUNDING = 2e-3
_FIGURE = re.compile(r"\d\.\de[-+]\d+")
# whatever a foreign architecture raises
_FAULTS = (
    UserError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    OSError,
    ArithmeticError,
    StrictDataclassError,
)


@dataclass(frozen=True)
class Proof:
    """What became of one architecture."""

    kind: str
    model: str = ""
    """Its class in transformers."""
    layout: str = ""
    attention: str = ""
    """The backend that computed its packs; ``own`` where rows were padded."""
    adapted: int = 0
    """Matrices that LoRA was put on."""
    losses: tuple[float, float] = (0.0, 0.0)
    """Before the first step, and after the third."""
    notices: tuple[str, ...] = ()
    """What the engine said about it."""
    faults: tuple[str, ...] = ()
    """Nothing, if it is proven."""
    seconds: float = 0.0


def prove(kind: str, folder: Path) -> Proof:
    """Take a tiny model of *kind* through training and export in *folder*; return what became of it."""
    began = time.monotonic()
    done: dict[str, Any] = {"kind": kind}
    step = "building"
    try:
        tokenizer = tiny_tokenizer()
        model = tiny_model(kind, tokenizer)
        done["model"] = type(model).__name__
        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        (folder / "train.json").write_text(json.dumps(_ROWS), "utf-8")
        recipe = recipe_from_values(_recipe(folder))
        step = "training"
        train(recipe)
        faults = _read_run(folder / "run", done)
        step = "gradients of packs"
        faults += _compare(recipe, folder / "run", done)
        step = "export"
        export(str(folder / "run"), folder / "exported")
    except _FAULTS as error:
        faults = [f"{step}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"]
    return Proof(**done, faults=tuple(faults), seconds=time.monotonic() - began)


def _recipe(folder: Path) -> dict[str, Any]:
    return {
        "model": str(folder / "base"),
        "output": str(folder / "run"),
        "data": {"train": str(folder / "train.json"), "max_tokens": 160},
        "method": {"type": "lora", "rank": 4},
        # every step sees all rows, so that what the loss loses is what was learnt; the fourth shows what three did
        "schedule": {"steps": 4, "batch_size": len(_ROWS), "learning_rate": 1e-2, "warmup": 0, "decay": "constant"},
        "evaluation": {"examples": 0},
        "checkpoints": {"every": 4},
        "engine": {"device": "cpu", "precision": "float32"},
    }


def _read_run(path: Path, done: dict[str, Any]) -> list[str]:
    """Add what the run in *path* says to *done*; return what is wrong with it."""
    from safetensors import safe_open

    plan = RunFolder(path).read("plan.json") or {}
    settled = plan["settled"]
    # the other one is about the recipe, which must learn something in three steps
    done["notices"] = tuple(text for text in plan["notices"] if not text.startswith("learning rate"))
    done["layout"], done["attention"] = settled["layout"], settled["attention"][0]
    losses = [each["loss"] for each in read_jsonl(path / "metrics.jsonl") if each["kind"] == "step"]
    done["losses"] = (losses[0], losses[3])
    with safe_open(path / "weights" / "adapter_model.safetensors", "pt") as saved:
        done["adapted"] = sum(".lora_A" in name for name in saved.keys())  # noqa: SIM118 - it is no dictionary
    faults = [text for text in plan["notices"] if "no finite gradient" in text or "sequences differ" in text]
    if not losses[3] < losses[0]:
        faults.append(f"three steps took the loss from {losses[0]:.4f} to {losses[3]:.4f}")
    return faults


def _compare(recipe: Any, path: Path, done: dict[str, Any]) -> list[str]:
    """Return in which blocks LoRA has nothing, and in which layouts its gradients are not those of padded rows."""
    import torch
    from accelerate import Accelerator

    from tunesmith.engine.check import choose_layout
    from tunesmith.engine.model import PackModel, pack_arguments
    from tunesmith.engine.pack import ROWS, build_packs
    from tunesmith.methods._whole import transformer_blocks
    from tunesmith.models.load import find_model, model_from

    model: Any = model_from(find_model(str(path)), torch.float32)
    base = model.get_base_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    blocks = transformer_blocks(base)
    bare = [i for i, block in enumerate(blocks) if not any("lora_" in name for name, _ in block.named_parameters())]
    faults = [f"LoRA finds nothing in block {bare[0]} of {len(blocks)}"] if bare else []
    if done["layout"] in ROWS:
        return faults
    packed = PackModel(model, base)
    examples = settle(recipe).prepared.train.examples
    layout, _ = choose_layout(packed, examples, done["layout"], Accelerator(cpu=True))
    packed.eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    found = {}
    for kind in dict.fromkeys((layout, "packed", "padded")):
        (pack,) = build_packs(list(examples), kind, 2**20)
        total = packed(**pack_arguments(pack.to(torch.device("cpu")))).sum()
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
        found[kind] = torch.cat([g.flatten() for g in gradients if g is not None])
    for kind in found:
        far = float((found[kind] - found["padded"]).norm() / found["padded"].norm())
        if not far < _ROUNDING:
            faults.append(f"gradients of {kind} rows are off by {far:.1e} from those of padded ones")
    return faults


@cache
def _versions() -> str:
    from importlib.metadata import version

    return f"transformers {version('transformers')}, torch {version('torch')}"


def page(proofs: list[Proof], command: str) -> str:
    """Return the table as a page of the reference."""
    proven = [proof for proof in proofs if not proof.faults]
    single = [proof for proof in proven if proof.layout == "single"]
    packed = [proof for proof in proven if proof.layout in ("prefix", "packed")]
    counts = {name: sum(p.attention == name for p in packed) for name in dict.fromkeys(p.attention for p in packed)}
    counted = ", ".join(f"{count} by {name}" for name, count in counts.items())
    parts = [
        f"<!-- written by `{command}` -->",
        "# Architectures",
        "Every causal language model of transformers whose tiny random configuration can be built on a CPU, taken "
        "through training and export like any other: LoRA has something in every block, three steps reduce the loss, "
        "packed rows have the gradients of padded ones, and what is saved, loaded and merged continues texts with the "
        "same tokens. Where layers cannot be masked, the engine pads rows, and where a model looks at the filling it "
        "takes one sequence a pass; it says so. `make test-architectures` repeats it.",
        f"{_versions()}: {len(proven)} of {len(proofs) + len(left_out())} proven; {len(packed)} packed "
        f"({counted}), {len(proven) - len(packed) - len(single)} padded, {len(single)} one sequence a pass.",
    ]
    rows = ["| architecture | class | layout | attention | adapted | loss | |", "|---|---|---|---|---|---|---|"]
    notes: dict[str, str] = {}
    for proof in sorted(proven, key=lambda each: each.kind):
        said = [_FIGURE.sub("…", text).replace(f" {proof.kind},", " it,") for text in proof.notices]
        numbers = [notes.setdefault(text, str(len(notes) + 1)) for text in said]
        rows.append(
            f"| {proof.kind} | {proof.model} | {proof.layout} | {proof.attention} | {proof.adapted} | "
            f"{proof.losses[0]:.2f} → {proof.losses[1]:.2f} | {', '.join(numbers)} |"
        )
    parts += ["## Proven", "\n".join(rows)]
    if notes:
        parts += ["What the engine said:", "\n".join(f"{number}. {text}" for text, number in notes.items())]
    failed = {proof.kind: "; ".join(proof.faults) for proof in proofs if proof.faults}
    rows = [f"| {kind} | {why} |" for kind, why in sorted({**left_out(), **failed}.items())]
    parts += ["## Not proven", "\n".join(["| architecture | why |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Prove the architectures and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    prepare_process()
    import torch

    torch.set_num_threads(1)
    proofs = []
    for kind in given.only.split(",") if given.only else architectures():
        with tempfile.TemporaryDirectory() as folder:
            proof = prove(kind, Path(folder))
        proofs.append(proof)
        print(json.dumps(vars(proof), ensure_ascii=False), flush=True)
    if given.write:
        write_text(given.write, page(proofs, "python bench/architectures.py --write docs/reference/architectures.md"))
    sys.exit(any(proof.faults for proof in proofs))


if __name__ == "__main__":
    main()
