"""Tunesmith, through the calls that its command line makes."""

from pathlib import Path
from typing import Any

from measure import Counts, Meter, read_task

task = read_task()
meter = Meter(task)

from tunesmith.recipe.read import recipe_from_values  # noqa: E402 - imports are timed
from tunesmith.run.train import train  # noqa: E402

meter.imported()


def listen(event: dict[str, Any]) -> None:
    """Take the time when the loop begins and after every step."""
    if event["kind"] == "progress" and event["task"] == "reference":
        # TRL asks its reference in each step; what is asked once is part of the steps, too
        if event["done"] == 0:
            meter.begin_shared()
        elif event["done"] == event["total"]:
            meter.end_shared()
    elif event["kind"] == "begin":
        meter.begin()
    elif event["kind"] == "step":
        fed = int(event.get("tokens_fed", 0))
        sequences = task.batch_size * (2 if task.workload == "dpo" else 1)
        counts = Counts(sequences, int(event["tokens"]), int(event["trained_tokens"]), fed)
        meter.step(counts, float(event["loss"]))


def main() -> None:
    """Train as the command line does."""
    rows = Path(task.rows)
    data = next(path for path in (rows / "alpaca.json", rows / "messages.jsonl") if path.exists())
    schedule = {"epochs": 1, "batch_size": task.batch_size, "learning_rate": 2e-4, "decay": "constant", "warmup": 0}
    values: dict[str, Any] = {
        "model": task.model,
        "data": {"train": str(data)},
        "output": f"{task.work}/run",
        "method": {"type": "lora", "rank": 16, "alpha": 32} if task.method == "lora" else {"type": "full"},
        "schedule": schedule | ({"steps": task.most_steps} if task.most_steps else {}),
        **task.options,
    }
    if task.workload == "dpo":
        values["stage"] = "dpo"
    train(recipe_from_values(values), listen, overwrite=True)
    meter.finish()


# processes that make examples import this file
if __name__ == "__main__":
    main()
