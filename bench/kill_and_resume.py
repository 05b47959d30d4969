"""Kill a run without warning, again and again, and go on with it: does it end with the same bits?

    python bench/kill_and_resume.py

Pretrains the demo's nano model for a few steps and trains LoRA with dropout on it, once undisturbed.  Then trains the
same recipe once a trial, sends SIGKILL at a random time within a random step, and resumes.  Exits with 1 where a
measurement or a weight differs from the undisturbed run's by a single bit.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tunesmith.core.files import read_jsonl
from tunesmith.engine.checkpoint import list_checkpoints
from tunesmith.run.demo_corpus import write_demo_data

RECIPES = Path(__file__).parents[1] / "recipes" / "demo"
CLOCK = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class Trial:
    """What became of one killed run."""

    delay: float
    """Seconds after the step was logged."""
    step: int
    checkpoint: int
    left_over: list[str]
    """What was half written when it was killed."""
    same_losses: bool
    same_weights: bool


def command(*arguments: object) -> list[str]:
    return ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "tunesmith", *map(str, arguments)]


def run(*arguments: object) -> None:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr}")


def recipe(folder: Path, steps: int) -> list[str]:
    """The couplet recipe with dropout, so that random states matter, and many checkpoints, so that some are hit."""
    changes = {
        "model": folder / "base",
        "data.train": folder / "data" / "couplets_train.json",
        "data.validation": folder / "data" / "couplets_test.json",
        "method.dropout": 0.1,
        "engine.device": "cpu",
        "evaluation.examples": 0,
        "evaluation.scores": "[]",
        "evaluation.every": steps // 4,
        "checkpoints.every": 3,
        "schedule.steps": steps,
    }
    return [str(RECIPES / "2-couplets.yaml"), *(f"{setting}={value}" for setting, value in changes.items())]


def measured(folder: Path) -> list[dict]:
    """All that a run measured, without what depends on the clock."""
    return [{k: v for k, v in event.items() if k not in CLOCK} for event in read_jsonl(folder / "metrics.jsonl")]


def weights(folder: Path) -> bytes:
    (path,) = (folder / "weights").glob("*.safetensors")
    return path.read_bytes()


def kill_at(step: int, delay: float, killed: Path, settings: list[str]) -> None:
    """Train into *killed* and send SIGKILL *delay* seconds after *step* steps were logged."""
    process = subprocess.Popen(command("train", *settings, f"output={killed}"), stdout=subprocess.DEVNULL)
    try:
        while max((event["step"] for event in read_jsonl(killed / "metrics.jsonl")), default=0) < step:
            if process.poll() is not None:
                sys.exit(f"the run ended before step {step}")
            time.sleep(0.001)
        time.sleep(delay)
    finally:
        process.kill()
        process.wait()


def try_once(whole: Path, killed: Path, settings: list[str], step: int, delay: float) -> Trial:
    """Kill a run, resume it, and compare it with *whole*."""
    kill_at(step, delay, killed, settings)
    reached = max(event["step"] for event in read_jsonl(killed / "metrics.jsonl"))
    checkpoint = max((saved for saved, _ in list_checkpoints(killed / "checkpoints")), default=0)
    left_over = sorted(path.name for path in killed.rglob(".*"))
    run("resume", killed)
    same_losses, same_weights = measured(whole) == measured(killed), weights(whole) == weights(killed)
    return Trial(delay, reached, checkpoint, left_over, same_losses, same_weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the times at which it is killed")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, whole = Path(name), Path(name) / "whole"
        write_demo_data(folder / "data")
        base = (f"data.train={folder / 'data' / 'corpus.txt'}", f"output={folder / 'base'}", "engine.device=cpu")
        run("train", RECIPES / "1-pretrain.yaml", *base, "evaluation.examples=0", "schedule.steps=10")
        settings = recipe(folder, chosen.steps)
        run("train", *settings, f"output={whole}")
        seconds = [event["seconds"] for event in read_jsonl(whole / "metrics.jsonl") if event["kind"] == "step"]
        numbers = random.Random(chosen.seed)
        trials = []
        for number in range(chosen.trials):
            # not after the last step but one: on an idle machine the run could end before it is killed
            step, delay = numbers.randrange(1, chosen.steps - 1), numbers.uniform(0, statistics.median(seconds))
            trials.append(try_once(whole, folder / f"killed-{number}", settings, step, delay))
    sys.exit(show(trials, chosen.steps))


def show(trials: list[Trial], steps: int) -> int:
    """Print the table; return the exit code."""
    table = Table(title=f"{steps} steps of recipes/demo/2-couplets.yaml with dropout, killed with SIGKILL")
    for heading in ("killed after step", "delay", "resumed from", "half written", "losses", "weights"):
        table.add_column(heading, justify="right")
    for trial in trials:
        table.add_row(
            str(trial.step),
            f"{trial.delay:.3f} s",
            str(trial.checkpoint),
            ", ".join(trial.left_over) or "-",
            "same bits" if trial.same_losses else "DIFFERENT",
            "same bits" if trial.same_weights else "DIFFERENT",
        )
    Console(width=120).print(table)
    same = sum(trial.same_losses and trial.same_weights for trial in trials)
    print(f"{same} of {len(trials)} killed runs ended with the same bits as the undisturbed one")
    return int(same != len(trials))


if __name__ == "__main__":
    main()
