"""Whole runs in one process: the loss curve, the schedule, validation, early stopping, and how a run fails."""

import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.core.errors import UserError
from tunesmith.engine.checkpoint import list_checkpoints, load_weights
from tunesmith.engine.order import ExampleOrder
from tunesmith.engine.schedule import make_schedule
from tunesmith.models.load import find_model, model_from
from tunesmith.recipe.schema import Schedule
from tunesmith.run.train import resume, train
from tunesmith.stages import Loss
from tunesmith.stages._likelihood import AbstractLikelihood

PLAIN_LORA = {"type": "lora", "rank": 4}
DECAYS = get_args(Schedule.model_fields["decay"].annotation)


def losses(events: list[dict], kind: str = "step") -> list[float]:
    return [event["loss"] for event in events if event["kind"] == kind]


def column(events: list[dict], name: str) -> list[float]:
    return [event[name] for event in events if event["kind"] == "step"]


def near(expected: list[float]) -> object:
    """What equals *expected* as far as float32 rounding goes."""
    return pytest.approx(expected, rel=0, abs=1e-5)


@pytest.fixture
def run(make_recipe, measured):
    """Return a function that trains a recipe and returns all that it measured."""

    def carry_out(name: str, **blocks) -> list[dict]:
        recipe = make_recipe(name, **blocks)
        train(recipe)
        return measured(recipe.output)

    return carry_out


@pytest.mark.parametrize("method", [PLAIN_LORA, "full"], ids=["lora", "full"])
def test_one_recipe_has_one_loss_curve_in_every_layout(run, method):
    padded, packed, prefix = (
        run(name, method=method, engine={"layout": name}) for name in ("padded", "packed", "prefix")
    )

    for other in (packed, prefix):
        assert near(losses(padded)) == losses(other)
        assert near(losses(padded, "evaluation")) == losses(other, "evaluation")
        assert near(column(padded, "gradient_norm")) == column(other, "gradient_norm")
        assert column(padded, "tokens") == column(other, "tokens")
        assert column(padded, "trained_tokens") == column(other, "trained_tokens")
    # 24 rows by five: the last step of an epoch sees four
    assert len(losses(padded)) == 6
    assert all(
        filled > plain for filled, plain in zip(column(padded, "tokens_fed"), column(packed, "tokens_fed"), strict=True)
    )
    assert column(packed, "tokens") == column(packed, "tokens_fed")
    assert sum(column(prefix, "tokens_fed")) < 0.8 * sum(column(packed, "tokens_fed"))


@pytest.mark.parametrize("layout", ["padded", "packed", "prefix"])
def test_how_a_step_is_cut_into_passes_changes_nothing(run, layout):
    many = run("many", method=PLAIN_LORA, engine={"layout": layout, "tokens_per_pass": 1})
    one = run("one", method=PLAIN_LORA, engine={"layout": layout, "tokens_per_pass": 100_000})

    assert near(losses(one)) == losses(many)
    assert near(losses(one, "evaluation")) == losses(many, "evaluation")
    assert near(column(one, "gradient_norm")) == column(many, "gradient_norm")


@pytest.mark.parametrize("method", [PLAIN_LORA, "full"], ids=["lora", "full"])
def test_recomputing_activations_changes_nothing(run, method):
    kept = run("kept", method=method)
    recomputed = run("recomputed", method=method, engine={"gradient_checkpointing": True})

    assert near(losses(kept)) == losses(recomputed)


def test_bfloat16_learns_as_float32_does(run, trained_weights, tmp_path):
    exact = run("float32", method="full")
    short = run("bfloat16", method="full", engine={"precision": "bfloat16"})

    assert pytest.approx(losses(exact), abs=0.1) == losses(short)
    assert losses(exact) != losses(short)
    assert {torch.float32} == {weight.dtype for weight in trained_weights(tmp_path / "bfloat16").values()}


def test_the_same_seed_gives_the_same_run_and_another_another(run):
    first, again, other = run("first"), run("again"), run("other", seed=4)

    assert first == again
    assert losses(first) != losses(other)


def test_the_validation_loss_is_what_transformers_says_of_the_weights(run, data, tmp_path):
    found = losses(run("run", method="full"), "evaluation")[-1]
    weights = tmp_path / "run" / "weights"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(weights), AutoTokenizer.from_pretrained(weights)
    total = count = 0.0
    for row in json.loads(Path(data[1]).read_text("utf-8")):
        asked = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        answer = tokenizer(f"{row['output']}<|im_end|>", add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        total += model(torch.tensor([prompt + answer]), labels=labels).loss.item() * len(answer)
        count += len(answer)

    assert near(total / count) == found


def test_every_example_is_seen_once_an_epoch_in_an_order_of_seed_and_step_alone():
    order = ExampleOrder(count=23, batch_size=5, seed=1)
    epochs = [[order.batch(epoch * 5 + step) for step in range(5)] for epoch in range(2)]

    assert order.steps_per_epoch == 5
    for epoch in epochs:
        assert list(range(23)) == sorted(index for batch in epoch for index in batch)
        assert [len(batch) for batch in epoch] == [5, 5, 5, 5, 3]
    assert epochs[0] != epochs[1]
    assert ExampleOrder(23, 5, seed=1).batch(7) == order.batch(7)
    assert ExampleOrder(23, 5, seed=2).batch(7) != order.batch(7)


def rates(decay: str, steps: int = 40, warmup: float = 4, **arguments: float) -> list[float]:
    """The learning rate of every step, of a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make_schedule(optimizer, decay, steps, warmup, arguments)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("decay", DECAYS)
def test_every_schedule_warms_up_to_its_peak_and_never_rises_again(decay):
    found = rates(decay)

    assert found[:4] == sorted(found[:4])
    assert pytest.approx(1.0) == max(found)
    # one of them reaches its peak with the last step of the rise, the others with the step after it
    assert pytest.approx(1.0, abs=0.01) == found[4]
    assert found[4:] == sorted(found[4:], reverse=True)
    assert (found[-1] < 0.5) == (decay != "constant")


@pytest.mark.parametrize("decay", DECAYS)
def test_every_schedule_works_without_warm_up(decay):
    assert pytest.approx(1.0, abs=0.01) == rates(decay, warmup=0)[0]


def test_warm_up_is_a_share_of_the_steps_below_one_and_a_number_of_steps_from_one():
    assert rates("linear", warmup=0.1) == rates("linear", warmup=4)


def test_arguments_of_a_schedule_are_its_own():
    assert pytest.approx(0.25, abs=0.01) == rates("cosine_with_min_lr", min_lr_rate=0.25)[-1]
    with pytest.raises(UserError, match=r"decay_arguments: linear .*min_lr_rate"):
        rates("linear", min_lr_rate=0.25)


def test_the_rate_of_the_recipe_is_the_peak(run):
    found = column(run("run", schedule={"learning_rate": 0.02, "warmup": 2, "decay": "linear"}), "learning_rate")

    assert pytest.approx([0.0, 0.01, 0.02, 0.015, 0.01, 0.005]) == found


def test_the_gradient_is_clipped_where_that_is_asked_for_and_its_norm_shown_unclipped(run, trained_weights, tmp_path):
    tiny = run("tiny", schedule={"max_gradient_norm": 1e-12})
    unclipped = run("unclipped", schedule={"max_gradient_norm": 0})
    moved = {name: trained_weights(tmp_path / name) for name in ("tiny", "unclipped")}
    # B of LoRA starts from zero
    size = {name: max(float(w.abs().max()) for n, w in each.items() if "lora_B" in n) for name, each in moved.items()}

    assert column(tiny, "gradient_norm")[0] == column(unclipped, "gradient_norm")[0] > 0.01
    assert size["tiny"] < 1e-2 * size["unclipped"]


# nothing is worth a gain of 100: the first validation stays the best
NO_GAIN = {"examples": 0, "every": 1, "minimum_gain": 100}


def test_a_run_without_gain_ends_early_and_keeps_the_best_weights(make_recipe, measured, trained_weights, tmp_path):
    recipe = make_recipe(evaluation={**NO_GAIN, "patience": 2}, schedule={"steps": 30}, checkpoints={"keep": 1})
    notices = []
    outcome = train(recipe, lambda event: notices.append(event.get("text", "")))
    kept = list_checkpoints(outcome.folder.checkpoints)

    assert outcome.reason == "early stopping"
    assert outcome.complete
    assert len(losses(measured(recipe.output))) == 3
    assert {1, 3} == {step for step, _ in kept}
    assert any("weights of step 1" in text for text in notices)
    assert same_weights(outcome.folder.weights, kept[0][1])


@pytest.mark.parametrize(("use", "expected"), [("best", 1), ("last", 6)])
def test_the_weights_are_the_best_or_the_last_as_asked(make_recipe, use, expected):
    outcome = train(make_recipe(evaluation=NO_GAIN, checkpoints={"every": 1, "keep": 1, "use": use}))
    kept = dict(list_checkpoints(outcome.folder.checkpoints))

    assert {1, 6} == set(kept)
    assert [step for step, path in kept.items() if same_weights(outcome.folder.weights, path)] == [expected]


def same_weights(weights, checkpoint) -> bool:
    """Whether a run's result is exactly what is in one of its checkpoints."""
    model = model_from(find_model(str(weights)), torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    load_weights(checkpoint, model)
    return all(torch.equal(before[n], p) for n, p in model.named_parameters() if p.requires_grad)


def test_without_validation_the_last_weights_are_taken_and_only_the_newest_checkpoints_kept(make_recipe, data):
    outcome = train(make_recipe(data={"validation": []}, checkpoints={"every": 1, "keep": 2}))
    kept = list_checkpoints(outcome.folder.checkpoints)

    assert [step for step, _ in kept] == [5, 6]
    assert same_weights(outcome.folder.weights, kept[-1][1])
    assert not (outcome.folder.path / "evaluation.json").exists()


def break_at(step: int, monkeypatch, factor: float) -> None:
    """Multiply the loss of one training step, counted from 1, by *factor*."""
    plain, count = AbstractLikelihood.coefficient, iter(range(1, 1000))

    def coefficient(self, pack):
        # validation does not count, and each step of these runs is one pass
        return plain(self, pack) * (factor if torch.is_grad_enabled() and next(count) == step else 1)

    monkeypatch.setattr(AbstractLikelihood, "coefficient", coefficient)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(factor, make_recipe, measured, monkeypatch):
    plain = train(make_recipe("plain"))
    recipe = make_recipe("broken")
    with monkeypatch.context() as patch:
        break_at(4, patch, factor)
        with pytest.raises(UserError, match=r"step 4: loss (nan|inf).*resume from the last checkpoint"):
            train(recipe)
    (kept,) = recipe.output.glob("failed-step-*.json")
    batch = json.loads(kept.read_text("utf-8"))

    assert batch["step"] == 4
    assert len(batch["examples"]) == 5
    assert all("train.json:" in row["origin"] and row["tokens"] for row in batch["examples"])
    assert not (recipe.output / "weights").exists()
    # the weights are those before the broken step, so that the run can go on
    assert resume(recipe.output).complete
    assert measured(plain.folder.path) == measured(recipe.output)


def test_a_gradient_that_is_no_number_stops_the_run_though_the_loss_is_one(make_recipe, monkeypatch):
    plain = AbstractLikelihood.loss

    def loss(self, log_probabilities, pack):
        # 0 * sqrt'(0) is not a number, sqrt(0) is
        zero = (log_probabilities.sum() * 0).abs().sqrt() * 0
        return Loss(plain(self, log_probabilities, pack).total + zero, {})

    monkeypatch.setattr(AbstractLikelihood, "coefficient", lambda self, pack: None)
    monkeypatch.setattr(AbstractLikelihood, "loss", loss)
    with pytest.raises(UserError, match=r"step 1: loss \d.*gradient norm nan"):
        train(make_recipe())


def test_a_learning_rate_that_explodes_is_named(make_recipe):
    with pytest.raises(UserError, match=r"Lower schedule.learning_rate"):
        train(make_recipe(method="full", schedule={"learning_rate": 1e30}))


def test_small_models_learn_their_rows_by_heart(run):
    """The loop, the optimizer and the labels together do what they are for."""
    schedule = {"steps": 70, "learning_rate": 2e-2, "batch_size": 8}
    found = losses(run("run", method="full", schedule=schedule, evaluation={"every": 60}, checkpoints={"every": 60}))

    assert found[-1] < 0.5 < 5 < found[0]


def test_epochs_become_steps(make_recipe, measured):
    """24 rows by five make five steps an epoch; half an epoch more is rounded."""
    recipe = make_recipe(schedule={"steps": None, "epochs": 1.5})
    train(recipe)
    epochs = column(measured(recipe.output), "epoch")

    assert round(7.5) == len(epochs)
    assert np.allclose(np.arange(1, 9) / 5, epochs)
