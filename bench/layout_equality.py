"""One recipe, every layout, one process and two: is it one loss curve?

    python bench/layout_equality.py

Pretrains the demo's nano model for a few steps, then trains the couplet recipe on it in each layout, with one process
and with two (gloo, on the CPU).  Exits with 1 where a training or validation loss differs by more than 1e-5 from that
of one padded sequence a row.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tunesmith.core.files import read_jsonl
from tunesmith.run.demo_corpus import write_demo_data

RECIPES = Path(__file__).parents[1] / "recipes" / "demo"
RUNS = (("padded", 1), ("packed", 1), ("prefix", 1), ("packed", 2), ("prefix", 2))
ALLOWED = 1e-5


def train(recipe: str, overrides: dict[str, object], processes: int = 1) -> list[dict]:
    """Run ``tunesmith train`` with one core a process; return what it measured."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tunesmith", "train", str(RECIPES / recipe)]
    changes = [f"{setting}={value}" for setting, value in overrides.items()]
    done = subprocess.run(["env", "OMP_NUM_THREADS=1", *command, *changes], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command + changes)} failed:\n{done.stderr}")
    return read_jsonl(Path(str(overrides["output"])) / "metrics.jsonl")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def column(events: list[dict], name: str, kind: str) -> list[float]:
    return [event[name] for event in events if event["kind"] == kind]


def difference(one: list[dict], other: list[dict], kind: str) -> float:
    """The largest difference between two curves, step by step."""
    pairs = zip(column(one, "loss", kind), column(other, "loss", kind), strict=True)
    return max(abs(a - b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each run")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_data(folder / "data")
        common = {"evaluation.examples": 0, "engine.device": "cpu", "engine.precision": "float32"}
        base = {"data.train": folder / "data" / "corpus.txt", "output": folder / "base", "schedule.steps": 30}
        train("1-pretrain.yaml", {**common, **base})
        tuned = {
            **common,
            "model": folder / "base",
            "data.train": folder / "data" / "couplets_train.json",
            "data.validation": folder / "data" / "couplets_test.json",
            "evaluation.scores": "[]",
            "schedule.steps": steps,
        }
        curves = {
            (layout, processes): train(
                "2-couplets.yaml",
                {**tuned, "engine.layout": layout, "output": folder / f"{layout}-{processes}"},
                processes,
            )
            for layout, processes in RUNS
        }
    sys.exit(show(curves, steps))


def show(curves: dict[tuple[str, int], list[dict]], steps: int) -> int:
    """Print the table; return the exit code."""
    table = Table(title=f"{steps} steps of recipes/demo/2-couplets.yaml")
    for heading in (
        "layout",
        "processes",
        "last loss",
        "validation",
        "largest difference",
        "validation's",
        "tokens fed",
    ):
        table.add_column(heading, justify="left" if heading == "layout" else "right")
    reference, worst = curves[RUNS[0]], 0.0
    for (layout, processes), events in curves.items():
        apart = [difference(reference, events, kind) for kind in ("step", "evaluation")]
        worst = max(worst, *apart)
        table.add_row(
            layout,
            str(processes),
            f"{column(events, 'loss', 'step')[-1]:.7f}",
            f"{column(events, 'loss', 'evaluation')[-1]:.7f}",
            *(f"{each:.1e}" for each in apart),
            f"{sum(column(events, 'tokens_fed', 'step')):,.0f}",
        )
    Console(width=120).print(table)
    print(f"largest difference {worst:.1e}, allowed {ALLOWED:.0e}: {'equal' if worst <= ALLOWED else 'NOT EQUAL'}")
    return int(worst > ALLOWED)


if __name__ == "__main__":
    main()
