"""Levers on memory change what is kept and when it is freed, not what is learnt."""

from collections import Counter
from contextlib import nullcontext
from itertools import combinations
from typing import Annotated

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.engine import activations
from tunesmith.engine.activations import ActivationOffload
from tunesmith.engine.checkpoint import list_checkpoints, load_tree
from tunesmith.engine.loop import TrainingLoop
from tunesmith.engine.memory import LEVERS
from tunesmith.engine.stepping import WeightSteps, round_by_chance
from tunesmith.optimizers import OPTIMIZERS, Optimizer
from tunesmith.recipe.schema import Engine
from tunesmith.run.machine import Machine
from tunesmith.run.plan import make_plan
from tunesmith.run.train import resume, train

LORA = {"type": "lora", "rank": 4}
ENGINE = {"device": "cpu", "precision": "float32", "tokens_per_pass": 4096}
NOT_CLIPPED = {"max_gradient_norm": 0}
BLOCKS = {"gradient_checkpointing": True}
PRODUCTS = {"gradient_checkpointing": "selective"}
BACKWARD = {"optimizer_in_backward": True}
SHORT = {"weights": "bfloat16", "precision": "bfloat16"}


@pytest.fixture
def curve(make_recipe, measured):
    """Return a function that trains and returns its losses and gradient norms."""

    def run(name, method, engine, **blocks):
        blocks = {"schedule": NOT_CLIPPED, **blocks}
        recipe = make_recipe(name, method=method, engine={**ENGINE, **engine}, **blocks)
        train(recipe)
        steps = [m for m in measured(recipe.output) if m["kind"] == "step"]
        return [m["loss"] for m in steps], [m["gradient_norm"] for m in steps]

    return run


@pytest.mark.parametrize("method", [LORA, {**LORA, "dropout": 0.2}, "full"], ids=["lora", "dropout", "full"])
def test_every_lever_and_pair_of_levers_has_the_same_curve(curve, method):
    """Loss and gradient norm of every step are those of the run without, in packs that share prefixes."""
    expected, norms = curve("plain", method, {})
    levers = [BLOCKS, PRODUCTS, BACKWARD]
    pairs = [{**one, **other} for one, other in combinations(levers, 2) if not (one is BLOCKS and other is PRODUCTS)]
    for index, engine in enumerate([*levers, *pairs]):
        losses, found = curve(str(index), method, engine)

        assert losses == pytest.approx(expected, rel=0, abs=1e-5), engine
        assert found == pytest.approx(norms, rel=1e-4), engine


@pytest.mark.parametrize("architecture", ["granite-scaled", "gpt2", "mixtral-experts", "gemma2-windowed"])
def test_selective_checkpointing_knows_other_blocks(curve, make_recipe, architecture):
    """Other attention, other activations, experts: kept products are those of the plain run."""
    expected, found = (
        curve(name, LORA, engine, architecture=architecture, schedule={"steps": 2, **NOT_CLIPPED})
        for name, engine in (("plain", {}), ("selective", PRODUCTS))
    )

    assert found[0] == pytest.approx(expected[0], rel=0, abs=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)


def test_selective_checkpointing_multiplies_once(curve, monkeypatch):
    """The policy is asked, keeps the products of blocks, and not the small ones of LoRA."""
    verdicts = Counter()
    policy = activations._policy

    def watched(context, operation, *arguments, **options):
        verdict = policy(context, operation, *arguments, **options)
        verdicts[operation.overloadpacket.__name__, verdict.name] += 1
        return verdict

    monkeypatch.setattr(activations, "_policy", watched)
    blocks = {"schedule": {"steps": 1, **NOT_CLIPPED}, "evaluation": {"every": None}}
    curve("run", {"type": "lora", "rank": 2}, PRODUCTS, architecture="granite-scaled", **blocks)

    assert verdicts["mm", "MUST_SAVE"] > 0
    assert verdicts["addmm", "MUST_SAVE"] == 0
    assert verdicts["addmm", "PREFER_RECOMPUTE"] > 0


def test_a_model_that_selective_checkpointing_does_not_fit_is_named(make_recipe, monkeypatch):
    """A product that is changed in place would be wrong the second time: torch notices, and the user is told."""
    monkeypatch.setattr("tunesmith.engine.check.fuse_lora", lambda model, in_place: fuse_in_place(model))
    from tunesmith.engine.lora import fuse_lora as fuse_in_place

    with pytest.raises(UserError, match="changes results of matrix products in place; use true"):
        train(make_recipe("run", method=LORA, engine={**ENGINE, **PRODUCTS}, architecture="granite-scaled"))


def test_gradients_are_freed_in_the_backward_pass(make_recipe, monkeypatch):
    """No two whole gradients live at a time, and the optimizer's state is written as without."""
    together = []
    step_one = WeightSteps._step_one

    def watched(self, weight, step):
        together.append(sum(w.grad is not None for w in self._order))
        step_one(self, weight, step)

    monkeypatch.setattr(WeightSteps, "_step_one", watched)
    states = []
    for name, engine in (("plain", {}), ("backward", BACKWARD)):
        recipe = make_recipe(name, method="full", engine={**ENGINE, **engine}, schedule=NOT_CLIPPED)
        train(recipe)
        states.append(load_tree(list_checkpoints(recipe.output / "checkpoints")[-1][1] / "optimizer"))

    assert set(together) == {1}
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()


def test_weights_are_stepped_in_the_last_of_several_passes(curve, make_recipe, monkeypatch):
    """Gradients of a step add up over its passes first; a notice says that they take memory so long."""
    small = {"tokens_per_pass": 150, "layout": "packed"}
    expected, norms = curve("plain", "full", small)
    losses, found = curve("backward", "full", {**small, **BACKWARD})
    notices = []
    recipe = make_recipe("told", method="full", engine={**ENGINE, **small, **BACKWARD}, schedule=NOT_CLIPPED)
    train(recipe, lambda event: notices.append(event["text"]) if event["kind"] == "notice" else None)

    assert losses == pytest.approx(expected, rel=0, abs=1e-5)
    assert found == pytest.approx(norms, rel=1e-4)
    assert sum("takes several passes" in text for text in notices) == 1


def test_a_step_half_done_is_not_repeated(make_recipe, monkeypatch):
    """Where memory runs out after some weights were stepped, the run ends and says why."""
    step_one, done = WeightSteps._step_one, []

    def limited(self, weight, step):
        if len(done) == 3:
            raise torch.OutOfMemoryError("out of memory")
        done.append(weight)
        step_one(self, weight, step)

    monkeypatch.setattr(WeightSteps, "_step_one", limited)

    with pytest.raises(UserError, match="some weights of this step had been stepped already"):
        train(make_recipe("run", method="full", engine={**ENGINE, **BACKWARD}, schedule=NOT_CLIPPED))


def test_memory_that_runs_out_before_the_first_weight_is_found(curve, monkeypatch):
    """Until a weight was stepped, a step can be run again in smaller passes."""
    expected, _ = curve("plain", "full", {"layout": "packed"})
    forward = TrainingLoop._forward

    def limited(self, pack):
        result = forward(self, pack)
        if torch.is_grad_enabled() and len(pack.tokens) > 200:
            raise torch.OutOfMemoryError("out of memory")
        return result

    monkeypatch.setattr(TrainingLoop, "_forward", limited)
    found, _ = curve("short", "full", {"layout": "packed", **BACKWARD})

    assert found == pytest.approx(expected, rel=0, abs=1e-5)


def test_rounding_by_chance_keeps_the_mean():
    """Every value becomes one of its two neighbours in bfloat16, so often that the mean is the value."""
    torch.manual_seed(0)
    values = torch.randn(64) * torch.tensor([1e-20, 1.0, 1e20, 1e-3]).repeat(16)
    rounded = torch.stack([round_by_chance(values, (1, step, 0)).double() for step in range(4000)])
    below, above = rounded.amin(0), rounded.amax(0)

    assert bool((below <= values).all())
    assert bool((above >= values).all())
    gap = (above - below).clamp(min=1e-300)
    assert float(((rounded.mean(0) - values) / gap).abs().max()) < 0.04  # five standard errors of a coin's mean
    assert round_by_chance(values, (1, 2, 3)).equal(round_by_chance(values, (1, 2, 3)))
    exact = torch.tensor([0.0, -1.5, float("inf"), -float("inf")])
    assert round_by_chance(exact, (0, 0, 0)).tolist() == exact.tolist()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.names()))
def test_every_optimizer_steps_weights_one_by_one_as_all_at_once(name):
    """Whatever an optimizer keeps by weight or by group; those that cannot say why."""
    values = {"type": name, **({"rank": 2} if name in ("galore", "apollo", "apollo_mini") else {})}
    optimizer = TypeAdapter(Annotated[Optimizer, OPTIMIZERS]).validate_python(values)
    if optimizer.needs_all_weights or list(optimizer.check_machine("cpu")):
        pytest.skip(optimizer.needs_all_weights or "needs another machine")
    if optimizer.package:
        pytest.importorskip(optimizer.package)

    def end(apart):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
        built = optimizer.build(model, 1e-2)
        steps = WeightSteps(built, dict(model.named_parameters()), 0, in_backward=apart)
        inputs = torch.randn(16, 8)
        for step in range(5):
            loss = model(inputs).square().mean()
            with steps.last_pass(step) if apart else nullcontext():
                loss.backward()
            if apart:
                steps.finish(step)
            else:
                built.step()
                built.zero_grad()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert end(True).tolist() == pytest.approx(end(False).tolist(), rel=1e-5, abs=1e-7)


def test_small_updates_are_not_lost():
    """At a rate where plain bfloat16 hardly moves, rounding by chance ends near the float32 weights."""
    torch.manual_seed(0)
    inputs, teacher = torch.randn(256, 16), torch.randn(16, 8) * 0.1
    wanted = inputs @ teacher

    def end(dtype, by_chance):
        torch.manual_seed(1)
        weight = nn.Parameter((torch.randn(16, 8) + 2).to(dtype))
        optimizer = torch.optim.AdamW([weight], lr=2e-3, weight_decay=0)
        steps = WeightSteps(optimizer, {"weight": weight}, 0, in_backward=False)
        start = None
        for step in range(600):
            loss = (inputs @ weight.float() - wanted).square().mean()
            start = start or float(loss)
            loss.backward()
            if by_chance:
                steps.step(step)
            else:
                optimizer.step()
                optimizer.zero_grad()
        return float(loss) / start

    master, plain, chance = end(torch.float32, False), end(torch.bfloat16, False), end(torch.bfloat16, True)

    assert chance == pytest.approx(master, abs=0.02)
    assert plain > master + 0.1


def test_full_fine_tuning_in_short_weights_follows_the_master(curve):
    """A model whose weights are bfloat16 learns what one with float32 weights learns, to bfloat16's rounding."""
    blocks = {"schedule": {"steps": 30, "learning_rate": 3e-4, **NOT_CLIPPED}, "evaluation": {"every": None}}
    (master, _), (short, _), (backward, _) = (
        curve(name, "full", {"precision": "bfloat16", **engine}, **blocks)
        for name, engine in (("master", {}), ("short", SHORT), ("backward", {**SHORT, **BACKWARD}))
    )

    assert master[-1] < master[0] - 0.3
    assert short == pytest.approx(master, rel=0.03)
    assert backward == short


@pytest.mark.parametrize(
    "engine", [SHORT, {**SHORT, **BACKWARD, **PRODUCTS}, BACKWARD], ids=["short", "all", "backward"]
)
def test_a_run_goes_on_bit_by_bit(make_recipe, measured, trained_weights, engine):
    """Short weights, their float32 states and the noise of their rounding go on where they stopped."""

    class Killed(BaseException):
        pass

    def kill(event):
        if event["kind"] == "step" and event["step"] == 4:
            raise Killed

    blocks = {"method": "full", "engine": {**ENGINE, **engine}, "schedule": {**NOT_CLIPPED}}
    whole, stopped = make_recipe("whole", **blocks), make_recipe("stopped", **blocks)
    train(whole)
    with pytest.raises(Killed):
        train(stopped, kill)
    resume(stopped.output)

    assert measured(stopped.output) == measured(whole.output)
    expected, found = trained_weights(whole.output), trained_weights(stopped.output)
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())
    state = load_tree(list_checkpoints(stopped.output / "checkpoints")[-1][1] / "optimizer")["state"]
    assert {tensor.dtype for entry in state.values() for tensor in entry.values()} == {torch.float32}


def test_offload_copies_what_is_no_weight_once():
    """Three layers save one input: one copy of it, none of the weights, and the gradients are the same."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])
    inputs = torch.randn(64, 32, requires_grad=True)

    def gradient(offload):
        layers.zero_grad()
        inputs.grad = None
        with offload:
            hidden = inputs * 2
            out = sum(torch.sigmoid(layer(hidden)).square().sum() for layer in layers)
        out.backward()
        return [inputs.grad.clone(), *(p.grad.clone() for p in layers.parameters())]

    offload = ActivationOffload(layers, smallest=1024)
    expected, found = gradient(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)), gradient(offload)

    assert all(one.equal(other) for one, other in zip(expected, found, strict=True))
    assert offload.offloaded_bytes == (1 + 3) * inputs.numel() * 4  # the shared input, and each sigmoid's result


@pytest.mark.parametrize(
    ("blocks", "setting", "words"),
    [
        ({"engine": BACKWARD}, "engine.optimizer_in_backward", "norm to clip to"),
        ({"engine": {**BACKWARD, "precision": "float16"}}, "engine.optimizer_in_backward", "scales all gradients"),
        ({"engine": {"weights": "bfloat16", "precision": "auto"}}, "engine.weights", "adapters train in float32"),
        ({"engine": {"weights": "bfloat16"}, "method": "full"}, "engine.weights", "float32 arithmetic"),
        ({"engine": {"activation_offload": True, **PRODUCTS}}, "engine.activation_offload", "cannot reach"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(make_recipe, blocks, setting, words):
    """The setting is named with the reason."""
    with pytest.raises(RecipeError) as refusal:
        make_recipe("run", **blocks)

    assert any(p.path == setting and words in p.message and p.hint for p in refusal.value.problems)


@pytest.mark.parametrize(
    ("engine", "machine", "setting"),
    [
        ({"activation_offload": True}, Machine(), "engine.activation_offload"),
        (BACKWARD, Machine(processes=2), "engine.optimizer_in_backward"),
    ],
)
def test_what_a_machine_cannot_do_is_refused(make_recipe, engine, machine, setting):
    """The plan names the setting; where it can be done, the plan stands."""
    recipe = make_recipe("run", engine=engine, schedule=NOT_CLIPPED)
    with pytest.raises(RecipeError) as refusal:
        make_plan(recipe, machine, 24, validated=True)

    assert [problem.path for problem in refusal.value.problems] == [setting]


def test_short_weights_compute_short(make_recipe):
    """Where the machine would choose float32, weights in bfloat16 decide."""
    recipe = make_recipe("run", method="full", engine={"weights": "bfloat16", "precision": "auto"})

    assert make_plan(recipe, Machine(bfloat16=False), 24, validated=True).precision == "bfloat16"


def test_every_lever_has_its_price():
    """The table names settings of the recipe."""
    for lever in LEVERS:
        Engine.model_validate({lever.setting: lever.value})
