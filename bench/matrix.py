"""Every method with every optimizer and quantization: three steps on a tiny model, or a reason why not.

    python bench/matrix.py [--methods lora,dora] [--optimizers adamw] [--write docs/reference/matrix.md]

The cells come from the registries, so that a new file is a new row or column.  A cell works if it trained three steps
with finite losses, the weights moved, and its weights were saved; else it says why it was refused before any weight was
loaded, or which package is missing.  Anything else is a fault, and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.core.files import read_jsonl, write_text
from tunesmith.core.settings import prepare_process
from tunesmith.methods import METHODS
from tunesmith.models.quantization import QUANTIZATIONS
from tunesmith.models.schema import NewTokenizer
from tunesmith.optimizers import OPTIMIZERS
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.train import train

if TYPE_CHECKING:
    from collections.abc import Iterable

# what weights of 64 by 64 and 64 by 128 need instead of a method's defaults
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"tokens": 4} for name in ("prompt_tuning", "p_tuning", "prefix_tuning")},
    "freeze": {"last": 1},
    "llama_pro": {"blocks": 1},
    "vblora": {"vector_length": 16, "vectors": 16},
    "fourierft": {"frequencies": 100},
    "waveft": {"frequencies": 100},
    "miss": {"rank": 16},
    "shira": {"rank": 4},
    "c3a": {"block_size": 16},
    "road": {"group_size": 32},
}
# optimizers that want no falling rate
SCHEDULES: dict[str, dict[str, Any]] = {"schedule_free": {"decay": "constant"}}
# three steps of a rate that begins at a millionth would move nothing
OPTIMIZER_SETTINGS: dict[str, dict[str, Any]] = {"prodigy": {"first_rate": 1e-3}}
PLAIN = "none"
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
WORKS, REFUSED, MISSING, FAULT = "works", "refused", "missing package", "fault"
_SIGNS = {WORKS: "✓", REFUSED: "–", MISSING: "□", FAULT: "✗"}


@dataclass(frozen=True)
class Cell:
    """What became of one combination."""

    outcome: str
    why: tuple[str, ...] = ()


def make_model(folder: Path) -> Path:
    """Write a random model and its tokenizer; return their folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunesmith.models.new_tokenizer import make_tokenizer

    tokenizer = make_tokenizer(NewTokenizer(vocabulary_size=300), ["the moon on the river, the boat in the rain"])
    torch.manual_seed(0)
    special = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model("qwen3", **SIZES, **special, num_key_value_heads=2, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_cell(model: Path, data: Path, method: str, optimizer: str, quantization: str) -> Cell:
    """Train one combination for three steps; return what became of it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        values = {
            "model": {"path": str(model), **({} if quantization == PLAIN else {"quantization": quantization})},
            "output": str(output),
            "data": {"train": str(data)},
            "method": {"type": method, **SETTINGS.get(method, {})},
            "optimizer": {"type": optimizer, **OPTIMIZER_SETTINGS.get(optimizer, {})},
            "schedule": {"steps": 3, "batch_size": 4, "warmup": 0, **SCHEDULES.get(optimizer, {})},
            "checkpoints": {"every": 3},
            "engine": {"device": "cpu", "precision": "float32"},
        }
        loading: list[str] = []

        def listen(event: Any) -> None:
            if event.get("text") == "loading the model":
                loading.append(event["text"])

        try:
            train(recipe_from_values(values), listen)
        except UserError as error:
            problems = error.problems if isinstance(error, RecipeError) else [error]
            why = tuple(" ".join(str(each).split()) for each in problems)
            if any("needs the package" in each for each in why):
                return Cell(MISSING, why)
            return Cell(FAULT if loading else REFUSED, why)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            return Cell(FAULT, (f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",))
        losses = [m["loss"] for m in read_jsonl(output / "metrics.jsonl") if m["kind"] == "step"]
        if len(losses) != 3 or not all(math.isfinite(loss) for loss in losses):
            return Cell(FAULT, (f"losses {losses}",))
        if len(set(losses)) == 1:
            return Cell(FAULT, (f"nothing moved: losses {losses}",))
        return Cell(WORKS) if list((output / "weights").glob("*.safetensors")) else Cell(FAULT, ("saved nothing",))


def page(cells: dict[tuple[str, str, str], Cell], command: str) -> str:
    """Return the table as a page of the reference."""
    counts = {outcome: sum(c.outcome == outcome for c in cells.values()) for outcome in _SIGNS}
    counted = ", ".join(f"{counts[outcome]} {outcome} ({_SIGNS[outcome]})" for outcome in _SIGNS if counts[outcome])
    parts = [
        f"<!-- written by `{command}` -->",
        "# What works with what",
        "Every method with every optimizer on every kind of base: three steps on a two-layer model on the CPU in "
        "float32. In a cell that works the losses are finite, the weights move and are saved. What cannot work is "
        "refused before a weight is loaded, for the reasons below.",
        f"{len(cells)} combinations: {counted}.",
    ]
    reasons: dict[str, str] = {}
    for kind in dict.fromkeys(key[2] for key in cells):
        of_kind = {key[:2]: cell for key, cell in cells.items() if key[2] == kind}
        parts.append(f"## Quantization: {kind}")
        if not any(cell.outcome == WORKS for cell in of_kind.values()):
            shared = set.intersection(*(set(cell.why) for cell in of_kind.values()))
            parts.append(f"No cell works on this machine. {_numbered(sorted(shared), reasons)}".strip())
            continue
        methods, optimizers = (list(dict.fromkeys(key[at] for key in of_kind)) for at in (0, 1))
        rows = [f"| | {' | '.join(optimizers)} |", f"|---|{'---|' * len(optimizers)}"]
        for method in methods:
            shown = []
            for optimizer in optimizers:
                cell = of_kind[method, optimizer]
                mark = _SIGNS[cell.outcome]
                shown.append(f"{mark} {_numbered(cell.why, reasons)}".strip())
            rows.append(f"| {method} | {' | '.join(shown)} |")
        parts.append("\n".join(rows))
    if reasons:
        parts += ["## Why not", "\n".join(f"{number}. {why}" for why, number in reasons.items())]
    return "\n\n".join(parts) + "\n"


def _numbered(why: Iterable[str], reasons: dict[str, str]) -> str:
    """Return the numbers of these reasons, giving new ones to those that are new."""
    return ", ".join(reasons.setdefault(each, str(len(reasons) + 1)) for each in why)


def main() -> None:
    """Run the cells and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", default=",".join(METHODS.names()))
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS.names()))
    parser.add_argument("--quantizations", default=",".join((PLAIN, *QUANTIZATIONS.names())))
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    prepare_process()
    import torch

    torch.set_num_threads(1)
    cells: dict[tuple[str, str, str], Cell] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model, data = make_model(Path(folder) / "model"), Path(folder) / "train.json"
        rows = [{"instruction": "Repeat.", "input": f"the moon {i}", "output": f"the moon {i}"} for i in range(4)]
        data.write_text(json.dumps(rows), "utf-8")
        for kind in given.quantizations.split(","):
            for method in given.methods.split(","):
                for optimizer in given.optimizers.split(","):
                    cell = run_cell(model, data, method, optimizer, kind)
                    cells[method, optimizer, kind] = cell
                    if cell.outcome == FAULT:
                        print(method, optimizer, kind, *cell.why, flush=True)
    text = page(cells, "python bench/matrix.py --write docs/reference/matrix.md")
    print(text.split("\n\n")[3], f"{time.monotonic() - began:.0f} s")
    if given.write:
        write_text(given.write, text)
    sys.exit(any(cell.outcome == FAULT for cell in cells.values()))


if __name__ == "__main__":
    main()
