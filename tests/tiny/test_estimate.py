"""The plan knows what a run needs: counted without weights, against what a real step was seen to take."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tunesmith.apps.cli.main import app
from tunesmith.core.errors import UserError
from tunesmith.core.settings import process_settings
from tunesmith.engine.lora import fuse_lora
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.models.known_shapes import known_config, known_shapes
from tunesmith.models.load import load_model
from tunesmith.recipe.read import read_recipe
from tunesmith.run.estimate import _trace
from tunesmith.run.fit import Fitter, fit, refuse_too_large
from tunesmith.run.machine import Machine
from tunesmith.run.outline import Outline
from tunesmith.run.passes import look_at_passes
from tunesmith.run.planning import plan_for
from tunesmith.run.settle import settle
from tunesmith.run.speed import quick_speed
from tunesmith.run.train import train

MIB = 2**20


def here(memory: int = 8 * 2**30) -> Machine:
    """A machine like this one, with so much memory."""
    return replace(Machine.probe("cpu", process_settings().world_size), memory_bytes=memory)


exactly = quick_speed


def live_peak(run) -> int:
    """The most bytes of tensors alive at once while *run* runs, above those alive before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("architecture", ["qwen3-tied", "gemma3-windowed", "gpt2"])
@pytest.mark.parametrize(
    "blocks",
    [
        {"method": {"type": "lora", "rank": 4}},
        {"method": {"type": "full"}, "engine": {"precision": "bfloat16", "layout": "packed"}},
        {"method": {"type": "full"}, "engine": {"gradient_checkpointing": True, "layout": "padded"}},
    ],
    ids=["lora", "full-bfloat16", "full-checkpointed"],
)
def test_a_pass_takes_what_was_counted(make_recipe, architecture, blocks):
    """The trace and a real pass of the same pack agree within 15% (usually 1%)."""
    from tunesmith.engine.activations import checkpoint_blocks

    recipe = make_recipe(architecture=architecture, **blocks)
    settled = settle(recipe, machine=here())
    plan, passes = settled.plan, look_at_passes(settled.plan, settled.prepared)
    trace = _trace(Outline(recipe, settled.config), plan, passes)
    counted = max(trace.peaks.values())
    kept = torch.float32 if plan.precision == "float32" or not recipe.method.adds_adapter else torch.bfloat16
    model = recipe.method.apply(load_model(recipe.model, settled.config, kept, 0))
    base = recipe.method.base_model(model)
    if recipe.engine.gradient_checkpointing:
        checkpoint_blocks(base, selective=False)
    packed = PackModel(model, base, plan.attention)
    fuse_lora(model)
    packed.train()
    pack = passes.largest.to("cpu")

    def one_pass():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=plan.precision == "bfloat16"):
            loss = packed(**pack_arguments(pack), coefficient=-pack.weight)
        loss.backward()

    measured = live_peak(one_pass)

    assert counted == pytest.approx(measured, rel=0.15)


def test_counting_leaves_nothing_behind(make_recipe, measured):
    """A run whose cost was counted exactly is the run it would have been: the engine keeps no phantom of a tensor."""
    settle(make_recipe("counted"), machine=here(), speed=exactly)
    run = train(make_recipe("run"))
    losses = [m["loss"] for m in measured(run.folder.path) if m["kind"] == "step"]

    # numbers: a phantom has none
    assert all(0 < loss < 20 for loss in losses)


def test_parameters_are_those_of_the_run(make_recipe):
    """The counts of the plan are the counts of the model that trained."""
    outcome = train(make_recipe("run"))
    settled = outcome.folder.read("plan.json")["settled"]
    model = outcome.folder.read("manifest.json")["model"]

    assert settled["parameters"] == model["parameters"]
    assert settled["trained_parameters"] == model["trained_parameters"]
    assert settled["memory"]["total"] > 0


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"type": "lora", "targets": ["nope"]}, "nope"),
        ({"type": "lora", "rank": 4096}, "method.rank: 4096 is more than any matrix"),
        ({"type": "freeze", "last": 99}, "the model has 2 blocks"),
    ],
)
def test_a_method_that_does_not_fit_is_refused_before_weights_load(make_recipe, monkeypatch, method, told):
    monkeypatch.setattr("tunesmith.run.assemble.load_model", lambda *_: pytest.fail("the weights were loaded"))

    with pytest.raises(UserError, match=told):
        train(make_recipe("run", method=method))


def test_a_run_that_plainly_does_not_fit_is_refused_with_what_would_help(make_recipe):
    settled = settle(make_recipe(method={"type": "full"}), machine=here(32 * MIB))

    with pytest.raises(UserError, match=r"memory: .* does not fit.*\n.*cheapest first") as error:
        refuse_too_large(settled)
    assert "smaller model" in str(error.value)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_full_training_needs_more_than_its_check(make_recipe, optimizer):
    """Also in short weights with an optimizer of no state to speak of: the check takes one copy of the gradients."""
    engine = {"weights": "bfloat16", "precision": "bfloat16", "tokens_per_pass": 4096}
    recipe = make_recipe(method="full", optimizer={"type": optimizer}, engine=engine, schedule={"batch_size": 16})
    plan = settle(recipe, machine=here(), speed=exactly).plan

    assert "check" not in plan.memory.moment


def test_fit_pulls_levers_until_it_fits_and_keeps_what_is_stated(make_recipe):
    """The cheapest levers that are enough; the method that the recipe states stays."""
    asked = make_recipe(method={"type": "full"}, engine={"precision": "float32", "layout": "padded"})
    need = settle(asked, machine=here(), speed=exactly).plan.memory.total
    machine = here(int((need - 1.5 * MIB) / 0.9))
    found = fit(asked, machine, exactly)
    again = settle(asked, machine=machine, speed=exactly)

    assert again.plan.memory.verdict != "fits"
    assert found.settled.plan.memory.verdict == "fits"
    assert found.settled.plan.recipe.method.type_name() == "full"
    assert any("engine." in why for why in found.why)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_lever_that_is_pulled_is_the_first_of_all_that_are_offered(make_recipe, method):
    """Though fewer are tried for it, and variants share what was traced."""
    asked = make_recipe(method=method, engine={"precision": "float32", "layout": "padded"})
    need = settle(asked, machine=here(), speed=exactly).plan.memory.total
    machine = here(int((need - 1.5 * MIB) / 0.9))
    settled = settle(asked, machine=machine, speed=exactly)
    fitter = Fitter(machine, settled.prepared, settled.config, exactly)
    offers = fitter.offers(settled)
    pulled = Fitter(machine, settled.prepared, settled.config, exactly).cheapest(settled, set())

    assert pulled == offers[0].lever
    assert fitter.settle(asked).plan.memory == settled.plan.memory


def test_where_weights_are_too_many_the_first_lever_makes_them_fewer(make_recipe):
    """No smaller pass can help: what is kept in memory all the time comes first."""
    asked = make_recipe(method={"type": "full"}, engine={"precision": "float32"})
    settled = settle(asked, machine=here(), speed=exactly)
    tight = settle(asked, machine=here(settled.plan.memory.parts["weights that train"] - 1), speed=exactly)
    lever = Fitter(tight.machine, tight.prepared, tight.config, exactly).cheapest(tight, set())

    assert lever.changes[0][0] in ("optimizer", "engine.weights", "method")
    stated = {"optimizer", "engine.weights", "method"}
    assert Fitter(tight.machine, tight.prepared, tight.config, exactly).cheapest(tight, stated) != lever


def test_fit_says_when_nothing_is_enough(make_recipe):
    with pytest.raises(UserError, match="is the least that this recipe can be brought to"):
        fit(make_recipe(), here(64 * MIB), exactly)


def test_known_shapes_have_the_parameters_that_are_published():
    """Counted on the meta device with one layer and with two, which are drawn out to as many as there are."""
    from transformers import AutoModelForCausalLM

    def count(name: str, layers: int) -> int:
        config = known_config(name)
        config = type(config)(**{**config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
        with torch.device("meta"):
            return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())

    for name, shape in known_shapes().items():
        one, two = count(name, 1), count(name, 2)

        assert one + (two - one) * (shape["num_hidden_layers"] - 1) == shape["parameters"], name


def test_a_known_model_is_planned_where_the_hub_is_out_of_reach(make_recipe, monkeypatch):
    """From its shape, and the plan says so; ``train`` needs the files."""
    monkeypatch.setattr("tunesmith.run.start.can_be_read", lambda _: False)
    recipe = make_recipe(model="Qwen/Qwen3-0.6B-Base", engine={"device": "auto", "precision": "auto"})
    plan = plan_for(recipe, card="4090").settled.plan

    assert plan.parameters == pytest.approx(596_049_920, rel=0.01)
    assert any("known shape of Qwen/Qwen3-0.6B" in notice for notice in plan.notices)


def test_a_card_is_planned_for_without_one(make_recipe):
    plan = plan_for(make_recipe(engine={"device": "auto", "precision": "auto"}), card="4090").settled.plan

    assert plan.device == "cuda"
    assert plan.precision == "bfloat16"
    assert plan.memory.available > 23 * 2**30
    assert plan.seconds > 0
    assert "assumed" in plan.why["seconds"]


def test_the_command_shows_memory_and_writes_the_fitted_recipe(make_recipe, tmp_path):
    recipe = make_recipe(engine={"device": "auto", "precision": "auto"})
    path, fitted = tmp_path / "recipe.yaml", tmp_path / "fitted.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_defaults=True)), "utf-8")
    shown = CliRunner().invoke(app, ["plan", str(path), "--fit", "8GB", "--output", str(fitted)])

    assert shown.exit_code == 0, shown.output
    assert "weights that train" in shown.output
    assert "of 7.9 GiB" in shown.output  # what a program sees of a card of 8
    assert "8GB: taken as the memory of a CUDA card" in shown.output
    assert read_recipe(Path(fitted)).engine.tokens_per_pass


@pytest.mark.parametrize(
    ("fit_to", "wanted", "device", "memory"),
    [
        ("8GB", "auto", "cuda", int(8 * 2**30 * 0.985)),
        ("8GB ram", "auto", "cpu", 8 * 2**30),
        ("8GB", "cpu", "cpu", 8 * 2**30),
        ("ram", "auto", "cpu", 0),
    ],
)
def test_a_size_is_a_card_unless_it_is_said_to_be_the_processors(make_recipe, fit_to, wanted, device, memory):
    """What people count memory of is a GPU; recipe or words say otherwise, and then the fitted recipe does too."""
    found = plan_for(make_recipe(engine={"device": wanted, "precision": "auto"}), fit=fit_to)

    assert found.settled.plan.device == device
    assert found.settled.plan.memory.available == (memory or Machine.probe("cpu").memory_bytes)
    assert found.fitted.settled.plan.recipe.engine.device == ("cpu" if "ram" in fit_to else wanted)
    assert fit_to in found.fitted.why[0]


def test_memory_of_the_processor_is_none_for_a_gpu(make_recipe):
    with pytest.raises(UserError, match=r"ram is the processor's, but the recipe says engine\.device: cuda"):
        plan_for(make_recipe(engine={"device": "cuda"}), fit="8GB ram")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--fit", "24"], "24 of what"),
        (["--fit", "banana"], "no card is called 'banana'"),
        (["--card", "nvidia"], "no card is called 'nvidia'"),
        (["--card", "4090", "--fit", "24GB"], "exclude each other"),
        (["--card", "4090", "--probe"], "times this machine"),
        (["--output", "x.yaml"], "--fit makes"),
    ],
)
def test_careless_options_are_told_what_would_be_right(options, told):
    with pytest.raises(UserError, match=told):
        CliRunner().invoke(app, ["plan", "recipe.yaml", *options], catch_exceptions=False, standalone_mode=False)
