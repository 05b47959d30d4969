"""Two processes learn what one learns, also where one of them has nothing to do."""

import json
import socket
import subprocess
import sys

import pytest
import yaml
from conftest import make_rows

from tunesmith.run.train import train


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(recipe_file, processes: int) -> None:
    """Train with torchrun on the CPU, one core a process; a process that waits for the other in vain fails the test."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
    command = ["env", "OMP_NUM_THREADS=1", sys.executable, *launcher, "-m", "tunesmith", "train", str(recipe_file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, complaints = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        process.terminate()  # told so, the launcher ends its processes; killed, it would leave them waiting
        process.wait(60)
        raise
    assert process.returncode == 0, complaints.decode()[-3000:]


def test_two_processes_have_the_loss_curve_of_one(make_recipe, measured, trained_weights, tmp_path):
    """Six rows by five: every other step has one example for both; each example is a pass; one row validates."""
    rows = make_rows(7)
    for name, part in (("train", rows[:6]), ("validation", rows[6:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part), "utf-8")
    blocks = {
        "data": {"train": str(tmp_path / "train.json"), "validation": str(tmp_path / "validation.json")},
        "method": {"type": "lora", "rank": 4},
        "engine": {"tokens_per_pass": 1},
    }
    one, two = make_recipe("one", **blocks), make_recipe("two", **blocks)
    train(one)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(two.model_dump(mode="json", exclude_defaults=True)), "utf-8")
    launch(recipe_file, processes=2)
    expected, found = measured(one.output), measured(two.output)

    assert [event["kind"] for event in expected] == [event["kind"] for event in found]
    for before, after in zip(expected, found, strict=True):
        assert pytest.approx(before["loss"], rel=0, abs=1e-5) == after["loss"]
        for name in ("tokens", "trained_tokens", "tokens_fed", "learning_rate"):
            assert before.get(name) == after.get(name)
        assert pytest.approx(before.get("gradient_norm"), abs=1e-4) == after.get("gradient_norm")
    weights, others = trained_weights(one.output), trained_weights(two.output)
    assert weights.keys() == others.keys()
    assert all((weights[name] - others[name]).abs().max() < 1e-4 for name in weights)
    assert json.loads((two.output / "plan.json").read_text("utf-8"))["settled"]["processes"] == 2
