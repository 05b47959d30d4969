"""Does DPO learn to tell verses from spoilt ones?  On couplets that it was not trained on.

    python bench/preferences.py --data ../shared/data/couplet_pairs.jsonl

A nano model learns couplets from nothing (SFT), then DPO from pairs: a couplet's own lower line and one that was spoilt
(its characters out of order, or more than half of them exchanged).  Prints how often it prefers the own line on
held-out couplets, and how many tokens the prefix forest fed of those that padding would.
"""

import argparse
import json
import random
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.files import read_jsonl
from tunesmith.engine.pack import build_packs
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.demo_corpus.pairs import as_pairs
from tunesmith.run.settle import settle
from tunesmith.run.train import train

INSTRUCTION = "请对出下联。"
SIZES = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def main() -> None:
    """Train both, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="couplets, one JSON object a line: u(pper), l(ower)")
    parser.add_argument("--couplets", type=int, default=120_000, help="to learn to write")
    parser.add_argument("--pairs", type=int, default=60_000, help="of these, to learn to prefer")
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--output", type=Path, help="folder for the runs; a temporary one")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        began = time.monotonic()
        folder = chosen.output or Path(temporary)
        write_data(chosen, folder)
        imitate(folder)
        prefer(folder)
        print(f"{time.monotonic() - began:.0f} seconds in all, one thread")


def write_data(chosen: argparse.Namespace, folder: Path) -> None:
    """Write couplets to imitate, and pairs of two parts that share no couplet."""
    with chosen.data.open(encoding="utf-8") as lines:
        rows = [(row["u"], row["l"]) for row in map(json.loads, islice(lines, chosen.couplets + chosen.held_out))]
    random.Random(0).shuffle(rows)
    held_out, rest = rows[: chosen.held_out], rows[chosen.held_out :]
    folder.mkdir(parents=True, exist_ok=True)
    alpaca = [{"instruction": INSTRUCTION, "input": upper, "output": lower} for upper, lower in rest]
    (folder / "couplets.json").write_text(json.dumps(alpaca, ensure_ascii=False), "utf-8")
    for name, part in (("pairs", rest[: chosen.pairs]), ("held_out", held_out)):
        (folder / f"{name}.json").write_text(as_pairs(part, INSTRUCTION, random.Random(name)), "utf-8")


def recipe(folder: Path, name: str, **blocks: Any) -> Any:
    """Return a recipe in *folder*."""
    usual = {
        "output": str(folder / name),
        "engine": {"device": "cpu"},
        "evaluation": {"examples": 0},
        "checkpoints": {"keep": 1},
    }
    return recipe_from_values({**usual, **blocks})


def imitate(folder: Path) -> None:
    """Train the nano model to write lower lines."""
    scratch = {"architecture": "qwen3", "sizes": SIZES, "tokenizer": {"kind": "characters", "vocabulary_size": 8000}}
    asked = recipe(
        folder,
        "couplets",
        model={"scratch": scratch},
        data={"train": str(folder / "couplets.json"), "max_tokens": 64},
        method="full",
        schedule={"epochs": 1, "batch_size": 64, "learning_rate": 3e-3},
    )
    outcome = train(asked, overwrite=True)
    steps = [line for line in read_jsonl(outcome.folder.path / "metrics.jsonl") if line["kind"] == "step"]
    print(f"imitation: {len(steps)} steps, loss {steps[0]['loss']:.2f} to {steps[-1]['loss']:.2f}")


def prefer(folder: Path) -> None:
    """Train DPO on it; print what it prefers and what it fed."""
    asked = recipe(
        folder,
        "preferences",
        model=str(folder / "couplets"),
        data={"train": str(folder / "pairs.json"), "validation": str(folder / "held_out.json"), "max_tokens": 64},
        stage={"type": "dpo", "beta": 0.1},
        method="full",
        schedule={"epochs": 1, "batch_size": 32, "learning_rate": 4e-4},
    )
    outcome = train(asked, overwrite=True)
    lines = read_jsonl(outcome.folder.path / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    for line in lines:
        if line["kind"] == "evaluation":
            accuracy, margin = line["rewards/accuracy"], line["rewards/margin"]
            print(
                f"step {line['step']}: held-out accuracy {accuracy:.1%}, margin {margin:.2f}, loss {line['loss']:.3f}"
            )
    examples = settle(asked).prepared.train.examples[: asked.schedule.batch_size]
    fed = {k: sum(len(p.tokens) for p in build_packs(examples, k, 4096)) for k in ("prefix", "packed", "padded")}
    print(
        f"preference: {len(steps)} steps; tokens fed for a batch {fed}: {fed['prefix'] / fed['padded']:.1%} of padding"
    )


if __name__ == "__main__":
    main()
