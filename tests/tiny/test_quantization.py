"""Quantized bases: they are smaller, train adapters exactly, are remembered, and are refused where they cannot be."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from tunesmith.apps.cli.main import app
from tunesmith.core.errors import RecipeError, UserError
from tunesmith.engine import dense_decoder
from tunesmith.engine.lora import fuse_lora
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.engine.packed_linear import PackedLinear, pack_linears
from tunesmith.models.load import find_model, load_model, plain_model_from
from tunesmith.models.quantization import QUANTIZATIONS, bytes_per_weight
from tunesmith.models.quantized_base import check_loaded_config, count_weights, is_quantized, own_quantization, steady
from tunesmith.models.schema import Model
from tunesmith.recipe.read import recipe_from_values
from tunesmith.recipe.schema import Engine
from tunesmith.run.cards import find_card
from tunesmith.run.catalogue import catalogue
from tunesmith.run.estimate import _trace
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.export import export
from tunesmith.run.fit import _apply, _levers, _values
from tunesmith.run.folder import RunFolder
from tunesmith.run.machine import Machine
from tunesmith.run.outline import Outline
from tunesmith.run.passes import look_at_passes
from tunesmith.run.plan import _check_machine
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train

pytest.importorskip("bitsandbytes")


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


FLOAT = torch.float32
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


def plain_config(saved_model):
    return AutoConfig.from_pretrained(saved_model("llama"))


def greedy(model) -> list[int]:
    with torch.no_grad():
        return model.generate(TOKENS, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0].tolist()


def stored_bytes(model) -> int:
    """Bytes of frozen weights, with all that belongs to the packed ones."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        tables = state.as_dict(packed=False).values() if state is not None else [getattr(parameter, "SCB", None)]
        if not parameter.requires_grad:
            total += parameter.nbytes + sum(each.nbytes for each in tables if isinstance(each, torch.Tensor))
    return total


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
def saved_wide(tmp_path_factory, saved_model) -> Path:
    """A model whose layers weigh more than what surrounds them."""
    path, original = tmp_path_factory.mktemp("wide"), saved_model("llama")
    config = AutoConfig.from_pretrained(original, hidden_size=128, intermediate_size=384)
    shutil.copytree(original, path, dirs_exist_ok=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


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


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_a_quantized_base_leaves_its_file(saved_model):
    """A whole file of weights would stay in memory for its embeddings."""

    def mapped():
        return Path("/proc/self/maps").read_text("utf-8").count(str(saved_model("llama")))

    before = mapped()
    small = quantized(saved_model("llama"), type="nf4")
    assert mapped() == before, f"{count_weights(small.lm_head.weight)} weights keep the file"


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


# --- what a plan says of it


@pytest.mark.parametrize("name", ["nf4", "int8"])
@pytest.mark.parametrize("architecture", ["qwen3-tied", "gpt2", "phi", "qwen3-experts", "bloom-alibi"])
def test_the_plan_packs_the_layers_that_loading_packs(architecture, name, saved_model):
    """Neither heads nor routers nor stacked experts are guessed: the names are those of the loaded model."""
    path = saved_model(architecture)
    loaded = quantized(path, type=name)
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(loaded.config)
    del outline.config.quantization_config
    count = pack_linears(outline, Model(path=str(path), quantization={"type": name}))
    packed = {name for name, module in outline.named_modules() if isinstance(module, PackedLinear)}

    assert count == len(packed) > 0
    assert packed == {n for n, m in loaded.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}


@pytest.mark.parametrize("settings", [{"type": "nf4"}, {"type": "nf4", "double": True}, {"type": "int8"}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pass_on_a_quantized_base_takes_what_was_counted(settings, precision, make_recipe_in, tmp_path, saved_wide):
    """Weights to 2% and the peak of a pass to 15%, as for plain models."""
    start = {"path": str(saved_wide), "quantization": settings}
    recipe = make_recipe_in(tmp_path, model=start, method=LORA, engine={"precision": precision})
    settled = settle(recipe, machine=Machine.probe("cpu"))
    plan, passes = settled.plan, look_at_passes(settled.plan, settled.prepared)
    outline = Outline(recipe, settled.config)
    counted = outline.static(plan)
    trace = _trace(outline, plan, passes)
    base = load_model(recipe.model, settled.config, getattr(torch, precision), 0)
    base.config.use_cache = False
    model = recipe.method.apply(base)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    packed = PackModel(model, recipe.method.base_model(model), plan.attention)
    fuse_lora(model)
    packed.train()
    pack = passes.largest.to("cpu")

    def one_pass() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = packed(**pack_arguments(pack), coefficient=-pack.weight)
        loss.backward()

    assert counted["weights, frozen"] == pytest.approx(stored_bytes(model), rel=0.02)
    assert max(trace.peaks.values()) == pytest.approx(live_peak(one_pass), rel=0.15)


def test_the_plan_says_how_the_base_is_quantized(make_recipe_in, tmp_path):
    settled = settle(make_recipe_in(tmp_path, quantization={"type": "nf4", "double": True}, method=LORA))
    plain = settle(make_recipe_in(tmp_path, model={"path": settled.plan.recipe.model.path}, method=LORA))

    assert settled.plan.quantization == "nf4 (double: True)"
    assert "bits each; head, embeddings and norms stay float32" in settled.plan.why["quantization"]
    assert plain.plan.quantization is None
    assert settled.plan.parameters == plain.plan.parameters


def test_a_base_too_large_for_a_card_fits_with_four_bits(make_recipe_in, tmp_path, tokenizer):
    """From the configuration alone, here of four blocks of a model of 14 billion: QLoRA fits."""
    sizes = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 4, "num_attention_heads": 40}
    config = AutoConfig.for_model("qwen2", **sizes, num_key_value_heads=8, vocab_size=len(tokenizer))
    config.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = make_recipe_in(tmp_path, model={"path": str(tmp_path / "model")}, method=LORA)
    recipe = recipe.model_copy(update={"engine": Engine(attention="dense", layout="packed")})
    # what of 24 GiB is left for so many of its blocks
    machine = replace(find_card("4090").machine(1), memory_bytes=int(2.25 * 2**30))
    whole = settle(recipe, machine=machine)
    levers = {lever.name: lever for lever in _levers(whole)}
    packed = settle(recipe_from_values(_apply(_values(recipe), levers["four bits a frozen weight"])), machine=machine)
    blocks = 4 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 13824)

    assert whole.plan.memory.verdict == "too much"
    assert packed.plan.recipe.model.quantization == QUANTIZATIONS.parse("nf4")
    assert packed.plan.memory.verdict == "fits"
    assert packed.plan.memory.parts["weights, frozen"] == pytest.approx(0.5625 * blocks, rel=0.02)


@pytest.mark.parametrize(("method", "quantization"), [("full", None), (LORA, "int8")])
def test_four_bits_are_offered_only_where_they_can_be(method, quantization, make_recipe_in, tmp_path, saved_model):
    start = {"path": str(saved_model("llama")), "quantization": quantization}
    settled = settle(make_recipe_in(tmp_path, model=start, method=method))

    assert "four bits a frozen weight" not in {lever.name for lever in _levers(settled)}


# --- training


@pytest.mark.parametrize("settings", [{"type": "nf4", "double": True}, {"type": "int8"}])
def test_adapters_learn_on_a_quantized_base(settings, make_recipe_in, tmp_path, measured):
    recipe = make_recipe_in(tmp_path, quantization=settings, method=LORA, schedule=SCHEDULE, evaluation={"every": 4})
    train(recipe)
    steps = [event["loss"] for event in measured(recipe.output) if event["kind"] == "step"]

    assert steps[-1] < steps[0] - 0.1
    # prompts are still shared: no layout had to fall back
    assert RunFolder(recipe.output).read("plan.json")["settled"]["layout"] == "prefix"


@pytest.mark.parametrize("method", [LORA, "dora"], ids=["lora", "dora"])
def test_layout_does_not_change_what_a_quantized_run_learns(method, make_recipe_in, tmp_path, measured):
    """Losses of prefixes, packs and rows, with peft's own layers (DoRA: its norms come from the unpacked weights)."""
    losses = []
    for layout in ("prefix", "packed", "padded"):
        given = {"engine": {"layout": layout}, "schedule": {**SCHEDULE, "learning_rate": 1e-3}}
        recipe = make_recipe_in(tmp_path, layout, architecture="qwen3", method=method, **given)
        outcome = train(recipe)
        losses.append([event["loss"] for event in measured(recipe.output) if event["kind"] == "step"])

        assert outcome.folder.read("plan.json")["settled"]["layout"] == layout
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_blocks_of_a_quantized_base_stay_eager_and_their_own(make_recipe_in, tmp_path, saved_model):
    """Neither our decoder nor the compiler takes weights that a library unpacks."""
    plan = settle(make_recipe_in(tmp_path, method=LORA, engine={"compile": True, "precision": "bfloat16"})).plan

    assert not plan.compile
    assert any("quantized weights are unpacked by kernels" in notice for notice in plan.notices)
    assert dense_decoder.fits(load_model(Model(path=str(saved_model("llama"))), plain_config(saved_model), FLOAT, 0))
    assert not dense_decoder.fits(quantized(saved_model("llama"), type="nf4"))


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


def test_a_run_is_exported_with_torchao(run, tmp_path):
    """Its tensors have no equality of their own."""
    pytest.importorskip("torchao")
    written = export(str(run), tmp_path / "model", quantization="torchao")

    assert own_quantization(written)[0] == "torchao"
    assert (
        type(AutoModelForCausalLM.from_pretrained(written).model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    )


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


@pytest.mark.parametrize(
    ("quantization", "told"),
    [
        ("nf5", "model.quantization: unknown quantization 'nf5'; have aqlm, awq, "),
        ({"type": "nf4", "compute": "float64"}, "model.quantization.compute: "),
        ({"type": "nf4", "bits": 3}, "model.quantization.bits: "),
        ({"type": "int8", "threshold": -1}, "model.quantization.threshold: "),
        ({"double": True}, "model.quantization: needs a type"),
        (4, "model.quantization: "),
        ("gptq", "is not quantized"),
        ({"type": "fp8", "unpack": True}, "unpacks, and "),
        ("fp8", "use {type: fp8, unpack: true} for a model that is quantized so, else nf4 or int8"),
    ],
)
def test_careless_settings_are_told_what_would_be_right(quantization, told, make_recipe_in, tmp_path):
    assert told in problems(lambda: make_recipe_in(tmp_path, quantization=quantization, method=LORA))


def test_a_new_model_is_not_quantized(make_recipe_in, tmp_path):
    start = {"scratch": {"architecture": "qwen3"}, "quantization": "nf4"}
    told = problems(lambda: make_recipe_in(tmp_path, model=start, method="full"))

    assert "model.quantization: a new model has no weights to quantize yet\n    hint: leave it out" in told
    assert told.count("model.quantization") == 1


@pytest.mark.parametrize(
    ("quantization", "told"),
    [("int8", "loftq makes up for what nf4 and fp4 lose"), (None, "not quantized by the recipe")],
)
def test_loftq_wants_four_bits(quantization, told, make_recipe_in, tmp_path):
    assert told in problems(lambda: make_recipe_in(tmp_path, quantization=quantization, method="loftq"))


@pytest.mark.parametrize("method", ["dora", "gralora", "c3a"])
def test_a_method_refuses_the_kind_that_peft_cannot_adapt_with_it(method, make_recipe_in, tmp_path):
    """Each of them ends in an error of peft or bitsandbytes; with nf4 they train."""
    told = problems(lambda: make_recipe_in(tmp_path, quantization="int8", method=method))

    assert f"method: {method} does not train on int8 weights: peft" in told
    assert "use model.quantization: nf4, or method: lora" in told


def test_loftq_is_refused_by_the_plan_where_peft_does_not_compute_it(make_recipe_in, tmp_path):
    with pytest.raises(RecipeError, match="peft computes loftq on a GPU only, and this machine has cpu"):
        settle(make_recipe_in(tmp_path, method="loftq"))


def test_a_quantized_model_on_the_hub_is_checked_once_its_configuration_is_known(make_recipe_in, tmp_path):
    """Its files are not here to look at while the recipe is read."""
    config = AutoConfig.for_model("llama", quantization_config={"quant_method": "gptq", "bits": 4})
    recipe = make_recipe_in(tmp_path, model={"path": "someone/llama-gptq"}, method="full")
    told = "; ".join(str(p) for p in check_loaded_config(recipe.model, recipe, config, "cpu"))

    assert "gptq needs the package gptqmodel\n    hint: pip install gptqmodel" in told
    assert "full does not train on gptq weights" in told
    assert "gptq computes on cuda only, and this machine has cpu" in told


def test_the_list_says_what_is_missing():
    found = catalogue("quantizations")["quantizations"]

    assert found["aqlm"].endswith("Not here: pip install aqlm.")
    assert "Not here" not in found["nf4"]


def test_a_quantized_run_chats_and_is_compared(run):
    """Through the doors that users take."""
    answer = CliRunner().invoke(app, ["chat", str(run)], input="mist\n")
    compared = CliRunner().invoke(app, ["compare", str(run), str(run)])

    assert answer.exit_code == 0, answer.output
    assert compared.exit_code == 0, compared.output


def test_a_kind_without_its_device_is_refused_by_the_plan(make_recipe_in, tmp_path):
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
