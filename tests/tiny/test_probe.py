"""A probe times the run's own steps, evaluations and checkpoints, on the model or on some of its blocks."""

import pytest
import torch

from tunesmith.run import probe
from tunesmith.run.planning import plan_for
from tunesmith.run.settle import settle
from tunesmith.run.speed import quick_speed

METHODS = [{"type": "lora", "rank": 4}, {"type": "full"}]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Time once and a second time, and no more."""
    monkeypatch.setattr(probe, "_PROBE_SECONDS", 0.0)
    monkeypatch.setattr(probe, "_FEWEST_TIMES", 1)


@pytest.mark.parametrize("method", METHODS, ids=["lora", "full"])
@pytest.mark.parametrize("architecture", ["qwen3-tied", "gpt2", "gemma3-windowed"])
def test_steps_are_timed(make_recipe, method, architecture):
    plan = plan_for(make_recipe(method=method, architecture=architecture), probe=True).settled.plan

    assert plan.seconds > 0
    assert "s a step" in plan.why["seconds"]
    assert "s an evaluation" in plan.why["seconds"]


def test_better_weights_are_written_at_each_evaluation(make_recipe, monkeypatch):
    """A checkpoint is on the disk before a step goes on, and a short run makes one nearly each time that it looks."""
    monkeypatch.setattr(probe, "_checkpoint_seconds", lambda job: 1000.0)
    recipe = make_recipe(schedule={"steps": 7, "batch_size": 2}, evaluation={"every": 2}, checkpoints={"every": 3})

    plan = plan_for(recipe, probe=True).settled.plan

    assert plan.seconds // 1000 == len({2, 3, 4, 6, 7})
    assert "1e+03 s a checkpoint" in plan.why["seconds"]


def test_a_part_of_the_blocks_is_drawn_out():
    """What a block more takes is added for each that was left out; a timer's noise takes nothing away."""
    few, more = probe._Times(1.0, 0.2, 0.4), probe._Times(1.5, 0.1, 0.6)

    found = few.drawn_out(more, 3)

    assert (found.trained, found.update, found.judged) == pytest.approx((2.5, 0.2, 1.0))


def test_the_model_that_is_timed_is_the_runs_with_its_first_blocks(make_recipe):
    """Of the same types, with numbers that are as quick to compute with as usual ones."""
    jobs = []

    def capture(job):
        jobs.append(job)
        return quick_speed(job)

    settle(make_recipe(engine={"precision": "bfloat16"}), speed=capture)
    model = probe._make_model(jobs[0], 1, torch.device("cpu"))
    weights = dict(model.model.named_parameters())

    assert len(model.base.base_model.layers) == 1
    assert {w.dtype for w in weights.values() if w.requires_grad} == {torch.float32}
    assert {w.dtype for w in weights.values() if not w.requires_grad} == {torch.bfloat16}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in (*weights.values(), *model.base.buffers()))
    assert all("lora_" in name for name, w in weights.items() if w.requires_grad)
