"""How much faster are packs built than a training step uses them up?

    python bench/pack_building.py

Trains LoRA on the benchmark's 30M model for a few steps of each workload, and builds the packs of the same steps alone
on the same machine.  Exits with 1 where building is less than 20 times faster: then training could wait for it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from reference import BATCH, make_tokenizer, write_model
from rich.console import Console
from rich.table import Table
from workloads import Case, write_rows

from tunesmith.engine.order import ExampleOrder
from tunesmith.engine.pack import build_packs
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.settle import settle
from tunesmith.run.train import train

WORKLOADS = ("couplets", "style", "chats", "long")
WANTED = 20


def measure(workload: str, folder: Path, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of each step's computation, of building its packs, and of fetching its examples."""
    case = Case(workload, examples=BATCH * steps)
    tokenizer = make_tokenizer()
    write_model(case, tokenizer, folder / "model")
    write_rows(case, folder / workload)
    alpaca = folder / workload / "alpaca.json"
    recipe = recipe_from_values(
        {
            "model": str(folder / "model"),
            "data": {"train": str(alpaca if alpaca.exists() else folder / workload / "messages.jsonl")},
            "output": str(folder / f"run-{workload}"),
            "schedule": {"epochs": 1, "batch_size": BATCH},
        }
    )
    computing: list[float] = []
    train(recipe, lambda event: computing.append(event["seconds"]) if event["kind"] == "step" else None)
    settled = settle(recipe)
    examples, plan = settled.prepared.train.examples, settled.plan
    order = ExampleOrder(len(examples), BATCH, recipe.seed)
    fetching, building = [], []
    for step in range(steps):
        began = time.perf_counter()
        chosen = [examples[index] for index in order.batch(step)]
        fetched = time.perf_counter()
        build_packs(chosen, plan.layout, plan.tokens_per_pass)
        fetching.append(fetched - began)
        building.append(time.perf_counter() - fetched)
    return computing, building, fetching


def main() -> None:
    """Print the table; exit with 1 where building is too slow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of each workload")
    steps = parser.parse_args().steps
    table = Table(title=f"{BATCH} examples a step, 30M model, LoRA: milliseconds, median of {steps} steps")
    for heading in ("workload", "computing a step", "building its packs", "fetching its examples", "times faster"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    least = float("inf")
    with tempfile.TemporaryDirectory() as name:
        for workload in WORKLOADS:
            computing, building, fetching = measure(workload, Path(name), steps)
            together = statistics.median(b + f for b, f in zip(building, fetching, strict=True))
            ratio = statistics.median(computing) / together
            least = min(least, ratio)
            shown = [f"{1000 * statistics.median(part):.2f}" for part in (computing, building, fetching)]
            table.add_row(workload, *shown, f"{ratio:.0f}")
    Console(width=120).print(table)
    print(f"least {least:.0f}, wanted {WANTED}: {'reached' if least >= WANTED else 'MISSED'}")
    sys.exit(int(least < WANTED))


if __name__ == "__main__":
    main()
