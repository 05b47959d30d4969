"""Quantized bases: they are smaller, train adapters exactly, are remembered, and are refused where they cannot be."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.engine.lora import fuse_lora
from tunesmith.models.load import find_model, load_model, plain_model_from
from tunesmith.models.quantization import QUANTIZATIONS, bytes_per_weight
from tunesmith.models.quantized_base import count_weights, is_quantized, own_quantization, steady
from tunesmith.models.schema import Model
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.export import export
from tunesmith.run.folder import RunFolder
from tunesmith.run.plan import _check_machine
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train

pytest.importorskip("bitsandbytes")

LORA = {"type": "lora", "rank": 4}
SCHEDULE = {"steps": 4, "batch_size": 24, "learning_rate": 2e-2}
TOKENS = torch.arange(5, 60)[None]
BITSANDBYTES = ["nf4", "fp4", "int8"]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def quantized(path: Path, dtype: torch.dtype = torch.float32, **settings):
    """The model at *path* as a recipe with these settings loads it."""
    model = Model(path=str(path), quantization=settings)
    return load_model(model, AutoModelForCausalLM.from_pretrained(path).config, dtype, 0)


def greedy(model) -> list[int]:
    with torch.no_grad():
        return model.generate(TOKENS, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0].tolist()


def problems(call) -> str:
    with pytest.raises(RecipeError) as caught:
        call()
    return str(caught.value)


@pytest.fixture(scope="module")
def run(make_recipe_in, tmp_path_factory) -> Path:
    """The folder of a QLoRA run."""
    folder = tmp_path_factory.mktemp("run")
    recipe = make_recipe_in(
        folder, architecture="llama", model=None, method=LORA, schedule=SCHEDULE, evaluation={"every": 2}
    )
    train(recipe)
    return recipe.output


@pytest.fixture(scope="module")
def make_recipe_in(make_recipe_in, saved_model):
    """As everywhere, with the base in nf4 where nothing else is said."""

    def make(folder, name="run", *, architecture="llama", quantization="nf4", model=None, **blocks):
        start = model or {"path": str(saved_model(architecture)), "quantization": quantization}
        return inner(folder, name, architecture=architecture, model=start, **blocks)

    inner = make_recipe_in
    return make


# --- what is loaded


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_a_base_is_loaded_in_fewer_bits_and_stays_close(name, saved_model):
    path = saved_model("llama")
    plain, small = AutoModelForCausalLM.from_pretrained(path), quantized(path, type=name)
    linear = small.model.layers[0].mlp.down_proj

    assert linear.weight.element_size() == 1
    assert sum(count_weights(p) for p in small.parameters()) == sum(p.numel() for p in plain.parameters())
    assert small.get_memory_footprint() < plain.get_memory_footprint()
    correlation = torch.corrcoef(torch.stack((logits(plain).flatten(), logits(small).flatten())))[0, 1]
    assert correlation > (0.999 if name == "int8" else 0.9)
    # what is not a linear layer of a block keeps its type
    assert {small.lm_head.weight.dtype, small.model.norm.weight.dtype} == {torch.float32}


@pytest.mark.parametrize("double", [False, True])
def test_nf4_is_that_of_bitsandbytes(double, saved_model):
    """The weights that a layer multiplies with are those that bitsandbytes makes of the original ones."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    path = saved_model("llama")
    original = AutoModelForCausalLM.from_pretrained(path).model.layers[1].self_attn.q_proj.weight.detach()
    layer = quantized(path, type="nf4", double=double).model.layers[1].self_attn.q_proj
    packed, state = quantize_4bit(original, blocksize=64, quant_type="nf4", compress_statistics=double)
    expected, inputs = dequantize_4bit(packed, state), torch.eye(original.shape[1])

    assert (expected - original).abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(inputs).T, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("compute", "dtype"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_weights_are_unpacked_to_the_type_of_the_model_or_that_asked_for(compute, dtype, saved_model):
    model = quantized(saved_model("llama"), torch.bfloat16, type="nf4", compute=compute)

    assert model.model.layers[0].mlp.up_proj.compute_dtype == dtype


@pytest.mark.parametrize("settings", [{"type": "nf4"}, {"type": "nf4", "double": True}, {"type": "int8"}])
def test_the_bytes_that_a_plan_counts_are_those_of_the_layer(settings):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    rows, columns = 320, 448
    if settings["type"] == "int8":
        layer = Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False).to("cpu")
        found = layer.weight.numel() + 4 * layer.weight.SCB.numel()
    else:
        layer = Linear4bit(columns, rows, bias=False, quant_type="nf4", compress_statistics="double" in settings)
        layer = layer.to("cpu")
        values = layer.weight.quant_state.as_dict(packed=False).values()
        found = layer.weight.nbytes + sum(v.nbytes for v in values if isinstance(v, torch.Tensor))
    counted = bytes_per_weight(QUANTIZATIONS.parse(settings), rows, columns) * rows * columns

    assert pytest.approx(found, rel=0.01) == counted


def test_answering_leaves_the_weights_as_they_are(saved_model):
    """bitsandbytes would pack them anew on some CPUs, and pass no gradient from then on."""
    model = quantized(saved_model("llama"), type="nf4")
    inputs = torch.randn(3, 32, requires_grad=True)
    layer = model.model.layers[0].self_attn.q_proj
    before = layer.weight.clone()
    logits(model)
    layer.train()(inputs).sum().backward()

    assert torch.equal(before, layer.weight)
    assert inputs.grad.abs().min() > 0


def test_fused_layers_leave_quantized_ones_to_peft(saved_model):
    from tunesmith.methods import METHODS

    model = METHODS.parse(LORA).apply(quantized(saved_model("llama"), type="nf4"))

    assert fuse_lora(model) == 0


# --- training


@pytest.mark.parametrize("settings", [{"type": "nf4", "double": True}, {"type": "int8"}])
def test_adapters_learn_on_a_quantized_base(settings, make_recipe_in, tmp_path, measured):
    recipe = make_recipe_in(tmp_path, quantization=settings, method=LORA, schedule=SCHEDULE, evaluation={"every": 4})
    train(recipe)
    steps = [event["loss"] for event in measured(recipe.output) if event["kind"] == "step"]

    assert steps[-1] < steps[0] - 0.1
    # prompts are still shared: no layout had to fall back
    assert RunFolder(recipe.output).read("plan.json")["settled"]["layout"] == "prefix"


def test_a_run_loads_as_it_was_when_it_ended(run, measured, data):
    """Validation loss and files: the adapter alone, and how its base was quantized."""
    ended = [event["loss"] for event in measured(run) if event["kind"] == "evaluation"][-1]
    judged = json.loads((run / "evaluation.json").read_text("utf-8"))["loss"]

    assert pytest.approx(judged["tuned"], abs=1e-5) == ended
    assert find_model(str(run)).quantized.quantization == QUANTIZATIONS.parse("nf4")
    assert is_quantized(load_contestant(str(run), "cpu").model)
    assert not (run / "weights" / "model.safetensors").exists()


def test_a_stopped_run_goes_on_bit_by_bit(make_recipe_in, tmp_path, trained_weights):
    blocks = {"method": {**LORA, "dropout": 0.1}, "schedule": SCHEDULE, "checkpoints": {"every": 2}}
    blocks["evaluation"] = {"every": 2}
    whole, stopped = make_recipe_in(tmp_path, "whole", **blocks), make_recipe_in(tmp_path, "stopped", **blocks)
    train(whole)

    def die(event) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, die)
    resume(stopped.output)
    expected, found = trained_weights(whole.output), trained_weights(stopped.output)

    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


# --- export


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory) -> Path:
    """The run's export, not quantized."""
    return export(str(run), tmp_path_factory.mktemp("whole") / "model")


def test_a_run_is_exported_on_the_original_weights_and_says_so(run, saved_model, tmp_path):
    told = []
    written = export(str(run), tmp_path / "model", listener=lambda event: told.append(event["text"]))
    merged = AutoModelForCausalLM.from_pretrained(written)
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(saved_model("llama"))
    expected = PeftModel.from_pretrained(base, str(run / "weights"))

    torch.testing.assert_close(logits(merged), logits(expected), rtol=1e-4, atol=1e-4)
    assert any("trained on quantized weights, and is written on unquantized ones: " in text for text in told)


def test_an_adapter_that_makes_up_for_what_was_lost_is_merged_into_the_unpacked_weights(run, tmp_path):
    path = run / "weights" / "quantization.json"
    noted = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**noted, "makes_up_for_it": True}), "utf-8")
    try:
        unpacked = plain_model_from(find_model(str(run)), torch.float32)
        torch.testing.assert_close(
            logits(unpacked), logits(load_contestant(str(run), "cpu").model), rtol=1e-3, atol=1e-3
        )
    finally:
        path.write_text(json.dumps(noted), "utf-8")


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_a_run_is_exported_in_fewer_bits(name, run, whole, tmp_path):
    """transformers loads the folder: the merged model as bitsandbytes quantizes it, to the bit."""
    told = []
    written = export(str(run), tmp_path / "model", quantization=name, listener=lambda event: told.append(event["text"]))
    found, expected = AutoModelForCausalLM.from_pretrained(written), quantized(whole, type=name)
    steady(found)

    assert own_quantization(written)[1].type_name() == name
    assert torch.equal(logits(expected), logits(found))
    assert greedy(expected) == greedy(found)
    assert any(f"the weights were rounded to {name}: " in text for text in told)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("name", "why"), [("gptq", "sample texts and a GPU"), ("nf4x", "did you mean 'nf4'")])
def test_what_cannot_be_made_here_is_refused_before_anything_is_loaded(name, why, run, tmp_path):
    with pytest.raises(UserError, match=why):
        export(str(run), tmp_path / "model", quantization=name)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_comes_quantized_needs_no_setting(run, make_recipe_in, tmp_path, measured):
    """It trains, exports unpacked, and what its files overrule is refused."""
    path = export(str(run), tmp_path / "small", quantization="nf4")
    recipe = make_recipe_in(tmp_path, model={"path": str(path)}, method=LORA, schedule=SCHEDULE)
    train(recipe)
    steps = [event["loss"] for event in measured(recipe.output) if event["kind"] == "step"]
    written = export(str(recipe.output), tmp_path / "model")

    assert steps[-1] < steps[0]
    assert own_quantization(written) is None
    assert "is quantized already (nf4), and stays as it is" in problems(
        lambda: make_recipe_in(tmp_path, model={"path": str(path), "quantization": "int8"})
    )
    assert "full does not train on nf4 weights" in problems(
        lambda: make_recipe_in(tmp_path, model={"path": str(path)}, method="full")
    )


# --- what is refused


@pytest.mark.parametrize("name", ["full", "freeze", "llama_pro", "pissa", "loha", "hra"])
def test_a_method_that_needs_the_weights_themselves_is_refused(name, make_recipe_in, tmp_path):
    assert f"method: {name} does not train on nf4 weights: " in problems(lambda: make_recipe_in(tmp_path, method=name))


def test_every_kind_loads_here_or_says_why_not(make_recipe_in, tmp_path):
    """A package that is missing, a GPU that is, or a model that is not quantized; never silence."""
    for name in sorted(set(QUANTIZATIONS.names()) - set(BITSANDBYTES) - {"torchao"}):
        assert "model.quantization: " in problems(lambda name=name: make_recipe_in(tmp_path, quantization=name))


def test_a_kind_without_its_device_is_refused_by_the_plan(make_recipe_in, tmp_path):
    from dataclasses import replace

    from tunesmith.run.machine import Machine

    recipe, machine = make_recipe_in(tmp_path), replace(Machine.probe("cpu"), device="mps")

    assert "nf4 computes on cpu and cuda only, and this machine has mps" in problems(
        lambda: _check_machine(recipe, machine)
    )


def test_training_on_a_quantized_run_asks_for_its_export(run, make_recipe_in, tmp_path):
    """Its adapter would be rounded a second time; it goes on only as it began."""
    found = problems(lambda: make_recipe_in(tmp_path, model={"path": str(run)}))

    assert "would round them again" in found
    assert f"tunesmith export {run} --to FOLDER" in found
    assert "goes on as it began" in problems(
        lambda: make_recipe_in(tmp_path, model={"path": str(run), "adapter": "continue"}, method=LORA)
    )


def test_a_quantized_run_goes_on_with_its_adapter(run, make_recipe_in, tmp_path, measured):
    start = {"path": str(run), "adapter": "continue", "quantization": "nf4"}
    recipe = make_recipe_in(tmp_path, model=start, method=LORA, schedule={"steps": 1, "batch_size": 24})
    train(recipe)
    first = json.loads((recipe.output / "evaluation.json").read_text("utf-8"))["loss"]

    assert find_model(str(recipe.output)).quantized.quantization == QUANTIZATIONS.parse("nf4")
    assert first["tuned"] < 10


def test_a_plan_is_made_without_the_weights(make_recipe_in, tmp_path):
    settled = settle(make_recipe_in(tmp_path, method=LORA))

    assert settled.plan.recipe.model.quantization == QUANTIZATIONS.parse("nf4")


def test_what_bitsandbytes_prints_does_not_reach_users():
    """It warns of kernels that it would download, when it is imported."""
    import bitsandbytes  # noqa: F401 - it could set the level itself

    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
