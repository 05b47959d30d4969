"""Predicted against actual time: what ``tunesmith plan --probe`` says, and how long the run then takes.

    python bench/time_table.py docs/time.md                  all recipes; give it the whole machine
    python bench/time_table.py docs/time.md --only chats     those so named; the others' rows stay as they were

Random weights in the shape of a known model, random text as long as real couplets and chats are.  The time is that from
the first step to the last, evaluations and checkpoints between them included; what comes before and after is not in the
plan.  Every row is kept in ``bench/results/time.jsonl``; a recipe's last one counts.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.memory_table import MODELS

_MODEL = "SmolLM2-135M"
_ALPHABET = [chr(0x4E00 + i) for i in range(1500)]
# name -> words of a question, words of an answer, turns, and what the recipe says
RECIPES: dict[str, tuple[tuple[int, int], tuple[int, int], int, dict[str, Any]]] = {
    "couplets, lora": ((5, 7), (5, 7), 1, {"method": "lora", "schedule": {"steps": 70, "batch_size": 24}}),
    "couplets, full": ((5, 7), (5, 7), 1, {"method": "full", "schedule": {"steps": 36, "batch_size": 24}}),
    "chats, lora": ((10, 60), (20, 120), 3, {"method": "lora", "schedule": {"steps": 16, "batch_size": 6}}),
}
_ROWS, _HELD_OUT = 2000, 32
_RESULTS = Path(__file__).with_name("results") / "time.jsonl"


def build(folder: Path, name: str) -> dict[str, Any]:
    """Write model and data of a recipe to *folder*; return its values."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunesmith.models.new_tokenizer import make_tokenizer
    from tunesmith.models.schema import NewTokenizer

    question, answer, turns, blocks = RECIPES[name]
    dice = random.Random(5)

    def text(length: tuple[int, int]) -> str:
        return "".join(dice.choice(_ALPHABET) for _ in range(dice.randint(*length)))

    def row() -> dict[str, Any]:
        said = [("user", question), ("assistant", answer)] * dice.randint(1, turns)
        system = {"role": "system", "content": "请对出下联，字数相同，词性相对，平仄相反，意思相关。"}
        return {"messages": [system, *({"role": role, "content": text(length)} for role, length in said)]}

    for file, count in (("train", _ROWS), ("held_out", _HELD_OUT)):
        rows = "".join(json.dumps(row(), ensure_ascii=False) + "\n" for _ in range(count))
        (folder / f"{file}.jsonl").write_text(rows, "utf-8")
    tokenizer = make_tokenizer(NewTokenizer(vocabulary_size=2000), ["".join(_ALPHABET)])
    architecture, sizes, vocabulary = MODELS[_MODEL]
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(architecture, vocab_size=vocabulary, **special, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "held_out.jsonl")},
        "evaluation": {"examples": 0},
        "output": str(folder / "run"),
        **blocks,
    }


def child(folder: Path, mode: str) -> dict[str, float]:
    """Return the seconds that are predicted (``predict``), or those that the run takes (``train``)."""
    from tunesmith.core.settings import prepare_process
    from tunesmith.recipe.read import recipe_from_values

    prepare_process()
    recipe = recipe_from_values(json.loads((folder / "recipe.json").read_text("utf-8")))
    if mode == "predict":
        from tunesmith.run.planning import plan_for

        began = time.monotonic()
        plan = plan_for(recipe, probe=True).settled.plan
        assert plan.seconds is not None
        return {"predicted": plan.seconds, "probe": time.monotonic() - began, "steps": plan.steps}
    from tunesmith.run.train import train

    seen: dict[str, float] = {}
    train(recipe, lambda event: seen.setdefault(event["kind"], time.monotonic()) and None)
    return {"actual": seen["end"] - seen["begin"]}


def run(name: str) -> dict[str, Any]:
    """Return prediction and measurement of the recipe *name*."""
    row: dict[str, Any] = {
        "recipe": name,
        "model": _MODEL,
        "threads": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "recipe.json").write_text(json.dumps(build(folder, name)), "utf-8")
        for mode in ("predict", "train"):
            command = [sys.executable, __file__, "--child", mode, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}, {mode}: {done.stderr[-3000:]}")
            row |= json.loads(done.stdout.splitlines()[-1])
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = ["| recipe | model | steps | predicted, s | actual, s | off by |", "|---|---|--:|--:|--:|--:|"]
    for row in rows:
        predicted, actual = row["predicted"], row["actual"]
        numbers = f"{row['steps']} | {predicted:.0f} | {actual:.0f} | {predicted / actual - 1:+.0%}"
        lines.append(f"| {row['recipe']} | {row['model']} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Run every recipe, or those that are named, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="file for the table; left out, rows are only kept")
    parser.add_argument("--only", default="", help="recipes whose name contains this; the others stay as they were")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[1]), options.child[0])))
        return
    for name in (each for each in RECIPES if options.only in each):
        row = run(name)
        with _RESULTS.open("a", encoding="utf-8") as results:
            results.write(json.dumps(row) + "\n")
        print(table([row]).splitlines()[-1], f"probe {row['probe']:.0f} s", flush=True)
    if options.page is not None:
        last = {row["recipe"]: row for row in map(json.loads, _RESULTS.read_text("utf-8").splitlines())}
        rows = [last[name] for name in RECIPES if name in last]
        options.page.write_text(
            f"""# Time: predicted and actual

Made by `python bench/time_table.py docs/time.md` on {max(row["date"] for row in rows)}, CPU, {rows[-1]["threads"]}
threads, nothing beside it. *Predicted* is what `tunesmith plan --probe` says, *actual* the time from the first step to
the last with the evaluations and checkpoints between them. Random weights in the shape of the model that is named.

{table(rows)}

How: [run/probe.py](../src/tunesmith/run/probe.py) times steps of the run's own model with a few of its blocks.
""",
            "utf-8",
        )


if __name__ == "__main__":
    main()
