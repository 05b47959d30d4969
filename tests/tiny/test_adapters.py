"""Adapters as objects: they go on training, add up, are made of models, change their kind and take turns on a base."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_methods import MISSING, applied, block, start
from test_tricks import stopped_after
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunesmith.apps.cli.adapter import adapter_app
from tunesmith.apps.cli.talk import talk
from tunesmith.core.errors import RecipeError, UserError
from tunesmith.core.files import read_jsonl
from tunesmith.generation.settings import Generation
from tunesmith.methods import METHODS
from tunesmith.models.load import find_model, model_from
from tunesmith.models.rope import RopeScaling, scale_rope
from tunesmith.models.schema import ADAPTER_WEIGHTS as WEIGHTS
from tunesmith.run.adapters import WAYS, add_adapters, describe_adapter
from tunesmith.run.chat import Talk
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.export import export
from tunesmith.run.extract import convert, extract
from tunesmith.run.folder import RunFolder
from tunesmith.run.settle import settle
from tunesmith.run.train import train

TOKENS = torch.arange(5, 60)[None]
GREEDY = Generation(max_new_tokens=8, temperature=0.0)
CONFIG = "adapter_config.json"
QUESTION = "Write the words again.\nmoon 4"


@pytest.fixture(scope="module")
def runs(make_recipe_in, tmp_path_factory):
    """Return a function from a name to the folder of a short run: name -> (method, rate, seed)."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {
        "first": ({"type": "lora", "rank": 4, "alpha": 16}, 2e-2, 3),
        "second": ({"type": "lora", "rank": 4, "alpha": 16}, 3e-2, 5),
        "wide": ({"type": "lora", "rank": 6, "targets": ["q_proj", "o_proj"]}, 2e-2, 7),
        "rslora": ({"type": "rslora", "rank": 4}, 2e-2, 3),
        "dora": ({"type": "dora", "rank": 4}, 2e-2, 3),
        "loha": ({"type": "loha", "rank": 4}, 2e-2, 3),
        "full": ("full", 1e-2, 3),
        "prompt": ({"type": "prompt_tuning", "tokens": 4}, 2e-2, 3),
    }

    def run(name: str) -> Path:
        method, rate, seed = kinds[name]
        recipe = make_recipe_in(
            folder,
            name,
            method=method,
            seed=seed,
            schedule={"steps": 8, "batch_size": 24, "learning_rate": rate},
            evaluation={"every": 8},
        )
        if not recipe.output.exists():
            train(recipe)
        return recipe.output

    return run


def logits(path: Path | str) -> torch.Tensor:
    model = model_from(find_model(str(path)), torch.float32)
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def loaded(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "adapter_model.safetensors")


# --- look


def test_a_description_says_what_the_adapter_is(runs, saved_model):
    found = describe_adapter(str(runs("first")))
    weights = loaded(runs("first") / "weights")

    assert (found.kind, found.rank, found.alpha) == ("lora", 4, 16)
    assert sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]) == found.targets
    assert str(saved_model("qwen3")) == found.base
    assert sum(w.numel() for w in weights.values()) == found.parameters
    assert found.base_unchanged


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def _double(path: Path) -> None:
    save_file({name: torch.cat([weight, weight]) for name, weight in load_file(path).items()}, path)


def _set(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "a pickle, which can run any code as it is read"),
        (lambda f: (f / WEIGHTS).unlink(), "is an adapter without weights: adapter_model.safetensors is missing"),
        (lambda f: _cut(f / WEIGHTS), "cannot be read (was a copy cut short?)"),
        (lambda f: _double(f / WEIGHTS), "does not fit its base: size mismatch"),
        (lambda f: (f / CONFIG).write_text("{"), "adapter_config.json is not JSON"),
        (lambda f: _set(f / CONFIG, base_model_name_or_path=None), "has no base_model_name_or_path; write it there"),
        (lambda f: _set(f / CONFIG, base_model_name_or_path="/gone"), "was trained on /gone, which is not there any"),
    ],
)
def test_broken_adapters_are_refused_in_words(spoil, said, runs, make_recipe, saved_model, tmp_path):
    folder = tmp_path / "spoilt"
    shutil.copytree(runs("first") / "weights", folder)
    spoil(folder)
    with pytest.raises(UserError) as error:
        load_contestant(str(folder), "cpu")
    with pytest.raises(UserError) as in_chat:
        Talk.load(str(saved_model("qwen3")), None, GREEDY, "cpu", [str(folder)])
    with pytest.raises((UserError, RecipeError)) as in_training:
        train(make_recipe(model={"path": str(folder), "adapter": "continue"}, method="lora"))

    assert said in str(error.value)
    assert said in str(in_chat.value)
    assert said in str(in_training.value)


def test_a_model_is_no_adapter(saved_model):
    with pytest.raises(UserError, match=r"is not an adapter but a whole model; expected a folder with adapter_config"):
        describe_adapter(str(saved_model("qwen3")))


# --- add


def test_all_of_one_and_nothing_of_the_other_is_the_one_to_the_bit(runs, tmp_path):
    """Its scale, 4, has an exact root, which linear puts into both factors."""
    paths = [str(runs("first")), str(runs("second"))]
    made = add_adapters(paths, tmp_path / "sum", weights=[1, 0], how="linear")

    assert torch.equal(logits(runs("first")), logits(made))
    assert not torch.equal(logits(runs("second")), logits(made))


FEW_WAYS = ("linear", "svd", "ties", "dare_linear_svd")


@pytest.mark.parametrize("how", [h if h in FEW_WAYS else pytest.param(h, marks=pytest.mark.matrix) for h in WAYS])
def test_every_way_is_that_of_peft(how, runs, saved_model, tmp_path):
    density = None if how in ("linear", "svd", "cat") else 0.6
    paths = [str(runs("first")), str(runs("second"))]
    made = add_adapters(paths, tmp_path / "sum", weights=[0.7, 0.3], how=how, density=density, seed=1)

    base = AutoModelForCausalLM.from_pretrained(saved_model("qwen3"), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, runs("first") / "weights", adapter_name="a")
    model.load_adapter(runs("second") / "weights", "b")
    torch.manual_seed(1)
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "sum", combination_type=how, density=density)
    model.set_adapter("sum")
    with torch.no_grad():
        expected = model.eval()(input_ids=TOKENS).logits

    torch.testing.assert_close(logits(made), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_other_ranks_modules_and_scales_add_up_to_the_sum_of_what_they_do(how, runs, saved_model, tmp_path):
    """A rank of 32 is more than any of these matrices needs; k_proj has only 16 rows."""
    parts = ["first", "wide", "rslora"]
    made = add_adapters(
        [str(runs(p)) for p in parts],
        tmp_path / "sum",
        weights=[0.5, 1, -0.25],
        how=how,
        rank=32 if how == "svd" else None,
    )
    base = model_from(find_model(str(saved_model("qwen3"))), torch.float32)
    merged = {part: model_from(find_model(str(runs(part))), torch.float32, merge=True) for part in parts}
    found = model_from(find_model(str(made)), torch.float32, merge=True)
    for name, weight in base.named_parameters():
        deltas = [merged[part].get_parameter(name) - weight for part in parts]
        expected = weight + 0.5 * deltas[0] + deltas[1] - 0.25 * deltas[2]

        torch.testing.assert_close(found.get_parameter(name), expected, rtol=1e-4, atol=1e-5)


def test_a_sum_has_what_is_needed_to_talk_train_and_export(runs, make_recipe, tmp_path):
    made = add_adapters([str(runs("first")), str(runs("second"))], tmp_path / "sum")
    run, answers = load_contestant(str(runs("first"))), load_contestant(str(made))
    second = make_recipe("next", model=str(made), schedule={"steps": 1})
    train(second)

    assert run.template.stop_ids == answers.template.stop_ids
    assert run.template.tokenizer.chat_template == answers.template.tokenizer.chat_template
    assert describe_adapter(str(made)).base_unchanged
    assert describe_adapter(str(second.output)).stands_on == [str(made)]
    assert export(str(made), tmp_path / "model").is_dir()


@pytest.mark.parametrize(
    ("parts", "options", "said"),
    [
        (["first", "second"], {"how": "lineer"}, "no way 'lineer' (did you mean 'linear'?); there are linear, svd"),
        (["first", "second"], {"weights": [1]}, "1 of them for 2 adapters; give one for each"),
        (["first", "second"], {"weights": [float("nan"), 1]}, "--weights: nan, 1: give finite numbers that are"),
        (["first", "second"], {"weights": [0, 0]}, "--weights: 0, 0: give finite numbers that are not all 0"),
        (["first", "first"], {}, "is named twice; name it once, and give it a larger weight with --weights"),
        (["first", "second"], {"how": "ties"}, "--density: ties needs it: the share of entries to keep, such as 0.5"),
        (["first", "second"], {"how": "ties", "density": 1.5}, "1.5 is no share"),
        (["first", "second"], {"how": "cat", "density": 0.5}, "cat keeps all entries"),
        (["first", "second"], {"how": "cat", "rank": 3}, "cat has no rank to choose"),
        (["first", "wide"], {"how": "linear"}, "linear needs one rank throughout, found 4, 6; use svd or cat"),
        (["first", "dora"], {}, "is a dora adapter; only LoRA can be added: tunesmith adapter convert"),
        (["first", "prompt"], {}, "is a prompt_tuning adapter"),
        (["first", "full"], {}, "is not an adapter but a whole model"),
    ],
    ids=str,
)
def test_what_does_not_add_up_is_refused(parts, options, said, runs, tmp_path):
    with pytest.raises(UserError) as error:
        add_adapters([str(runs(part)) for part in parts], tmp_path / "sum", **options)

    assert said in str(error.value)
    assert not (tmp_path / "sum").exists()


def test_adapters_of_two_bases_are_refused_by_name(runs, make_recipe, saved_model, tmp_path):
    other = make_recipe("other", architecture="qwen3-tied", schedule={"steps": 1})
    train(other)
    with pytest.raises(UserError) as error:
        add_adapters([str(runs("first")), str(other.output)], tmp_path / "sum")

    assert "were trained on different bases" in str(error.value)
    assert str(saved_model("qwen3")) in str(error.value)
    assert str(saved_model("qwen3-tied")) in str(error.value)


# --- extract and convert


def test_what_was_merged_is_extracted_again(runs, saved_model, tmp_path):
    merged = export(str(runs("first")), tmp_path / "merged")
    found = extract(str(merged), str(saved_model("qwen3")), tmp_path / "adapter", rank=6)

    torch.testing.assert_close(logits(tmp_path / "adapter"), logits(merged), rtol=1e-5, atol=1e-5)
    assert list(found.kept) == [1, 2, 4, 6]
    assert sorted(found.kept.values()) == list(found.kept.values())
    assert found.kept[2] < 0.999
    assert pytest.approx(1, abs=1e-9) == found.kept[4]
    assert (found.layers, found.left_out, found.outside) == (14, [], 0.0)


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3-tied", "gpt2"])
def test_a_model_trained_in_full_is_held_by_a_full_rank_and_whole_modules(
    architecture, make_recipe, saved_model, tmp_path
):
    """Norms, embeddings and biases are no LoRA's; without them it says how much is missing."""
    recipe = make_recipe(architecture=architecture, method="full", schedule={"steps": 3, "learning_rate": 1e-2})
    train(recipe)
    base = str(saved_model(architecture))
    part = extract(str(recipe.output), base, tmp_path / "part", rank=2)

    assert 0 < part.kept[1] < part.kept[2] < 1
    assert 0 < part.outside < 1
    assert any("norm" in name or "ln_" in name for name in part.left_out)
    if architecture != "gpt2":  # it has biases everywhere: all of it would be whole
        whole = extract(str(recipe.output), base, tmp_path / "whole", rank=64, whole=True)

        assert (whole.outside, whole.left_out) == (0, [])
        torch.testing.assert_close(logits(tmp_path / "whole"), logits(recipe.output), rtol=1e-4, atol=1e-4)


def test_the_shares_are_those_of_all_singular_values(runs, saved_model, tmp_path):
    found = extract(str(runs("full")), str(saved_model("qwen3")), tmp_path / "adapter", rank=3)
    before, after = (model_from(find_model(str(p)), torch.float32) for p in (saved_model("qwen3"), runs("full")))
    layers = [n for n, m in before.named_modules() if isinstance(m, torch.nn.Linear)]
    values = [
        torch.linalg.svdvals((after.get_submodule(n).weight - before.get_submodule(n).weight).double()) for n in layers
    ]
    squares = [v.square() for v in values]

    assert (
        pytest.approx(float(sum(s[:3].sum() for s in squares) / sum(s.sum() for s in squares)), rel=1e-4)
        == found.kept[3]
    )


def test_a_large_matrix_is_cut_as_an_exact_decomposition_would(saved_model):
    from tunesmith.run.extract import _factor

    torch.manual_seed(0)
    matrix = torch.randn(220, 6) @ torch.randn(6, 300) + 0.01 * torch.randn(220, 300)
    found = _factor(matrix, 6)
    up, values, down = torch.linalg.svd(matrix, full_matrices=False)

    torch.testing.assert_close(found.up @ found.down, up[:, :6] * values[:6] @ down[:6], rtol=1e-3, atol=1e-3)


def test_models_that_cannot_be_compared_are_refused(runs, saved_model, tmp_path):
    base = str(saved_model("qwen3"))
    wrong = {
        str(saved_model("llama")): "is a llama and",
        str(saved_model("qwen3-tied")): "the models differ in shape: lm_head.weight is absent in",
        base: "have the same weights: there is nothing to extract",
        str(runs("prompt")): "cannot be merged into its base: virtual tokens are no weights",
    }
    for path, said in wrong.items():
        with pytest.raises(UserError, match=said):
            extract(path, base, tmp_path / "adapter")

    assert not (tmp_path / "adapter").exists()


def test_other_rotary_positions_and_tokens_are_not_lost(runs, saved_model, tmp_path):
    """Weights are not all that a model computes by: the former go with the adapter, for the latter it has no room."""
    base, tuned, grown = saved_model("llama"), tmp_path / "tuned", tmp_path / "grown"
    config = AutoConfig.from_pretrained(base)
    scale_rope(config, RopeScaling(type="linear", factor=2))
    model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.5)
    model.save_pretrained(tuned)
    AutoTokenizer.from_pretrained(base).save_pretrained(tuned)
    extract(str(tuned), str(base), tmp_path / "adapter", rank=32)
    shutil.copytree(runs("loha") / "weights", grown)
    config = AutoConfig.from_pretrained(saved_model("qwen3"))
    config.vocab_size += 2
    config.save_pretrained(grown)

    torch.testing.assert_close(logits(tmp_path / "adapter"), logits(tuned), rtol=1e-4, atol=1e-4)
    with pytest.raises(
        UserError, match=r"the models differ in shape: \S+ is \[\d+, 32\] in .*grown, \[\d+, 32\] in .*qwen3"
    ):
        convert(str(grown), tmp_path / "lora")


@pytest.mark.parametrize("name", ["dora", "loha"])
def test_any_kind_that_merges_becomes_a_lora(name, runs, tmp_path):
    found = convert(str(runs(name)), tmp_path / "lora", rank=48)

    assert describe_adapter(str(tmp_path / "lora")).kind == "lora"
    assert pytest.approx(1, abs=1e-6) == max(found.kept.values())
    torch.testing.assert_close(logits(tmp_path / "lora"), logits(runs(name)), rtol=1e-4, atol=1e-4)


def test_a_conversion_to_less_rank_is_that_of_peft(runs, tmp_path):
    convert(str(runs("loha")), tmp_path / "lora", rank=3)
    _, expected = peft.convert_to_lora(model_from(find_model(str(runs("loha"))), torch.float32), rank=3)
    found = loaded(tmp_path / "lora")
    for name in (name for name in expected if ".lora_A." in name):
        up = name.replace("lora_A", "lora_B")

        torch.testing.assert_close(found[up] @ found[name], expected[up] @ expected[name], rtol=1e-3, atol=1e-5)


# --- go on


def losses(path: Path) -> list[float]:
    return [m["loss"] for m in read_jsonl(path / "metrics.jsonl") if m["kind"] == "step"]


def test_an_adapter_goes_on_from_where_it_stood(runs, make_recipe, saved_model):
    schedule = {"steps": 4, "batch_size": 24, "learning_rate": 1e-2}
    blocks = {"model": {"path": str(runs("first")), "adapter": "continue"}, "method": "lora", "schedule": schedule}
    recipe, broken = make_recipe("whole", **blocks), make_recipe("broken", **blocks)
    train(recipe)
    stopped_after(broken, 2)
    before, after = describe_adapter(str(runs("first"))), describe_adapter(str(recipe.output))
    notices = RunFolder(recipe.output).read("plan.json")["notices"]

    assert losses(recipe.output)[0] <= losses(runs("first"))[-1] + 0.05
    assert losses(recipe.output)[-1] < losses(recipe.output)[0]
    assert replace(before, path="", bytes=0) == replace(after, path="", bytes=0)
    assert after.stands_on == []
    weights, resumed = loaded(recipe.output / "weights"), loaded(broken.output / "weights")
    assert loaded(runs("first") / "weights").keys() == weights.keys() == resumed.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())
    assert any("itself goes on training; what the recipe leaves out is as it has it" in text for text in notices)


@pytest.mark.parametrize("name", ["dora", "prompt"])
def test_other_kinds_go_on_too(name, runs, make_recipe):
    """With no step taken, what is saved is what was loaded."""
    kind = "prompt_tuning" if name == "prompt" else name
    recipe = make_recipe(
        model={"path": str(runs(name)), "adapter": "continue"},
        method=kind,
        schedule={"steps": 1, "learning_rate": 1e-12},
    )
    train(recipe)
    before, after = loaded(runs(name) / "weights"), loaded(recipe.output / "weights")

    assert before.keys() == after.keys()
    for key in before:
        torch.testing.assert_close(before[key], after[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("first", {"type": "lora", "rank": 8}, "method.rank: 8, but the adapter has 4; leave it out"),
        ("first", {"type": "lora", "alpha": 8}, "method.alpha: 8.0, but the adapter has 16.0; leave it out"),
        ("first", {"type": "lora", "targets": ["q_proj"]}, "method.targets: the adapter has one for"),
        ("first", {"type": "lora", "modules_to_save": ["norm"]}, "method.modules_to_save: ['norm'], but"),
        ("first", {"type": "dora"}, "the adapter is of the kind lora, not dora; use lora"),
        ("dora", {"type": "lora"}, "the adapter is of the kind dora, not lora; use dora"),
        ("first", {"type": "loha"}, "the adapter is of the kind lora, which loha cannot go on with"),
        ("first", {"type": "pissa"}, "what begins as a part of the weights is saved as plain lora: use method: lora"),
        ("first", {"type": "full"}, "full trains no adapter that could go on"),
    ],
    ids=str,
)
def test_settings_that_contradict_the_adapter_are_refused_before_weights_load(name, method, said, runs, saved_model):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved_model("qwen3")))
    with pytest.raises(UserError) as error:
        METHODS.parse(method).go_on(model, runs(name) / "weights")

    assert said in str(error.value)


def test_the_plan_refuses_them(runs, make_recipe):
    recipe = make_recipe(model={"path": str(runs("first")), "adapter": "continue"}, method={"type": "lora", "rank": 8})
    with pytest.raises(UserError, match="but the adapter has 4"):
        settle(recipe)


def test_settings_that_agree_and_dropout_are_taken(runs, make_recipe):
    method = {"type": "lora", "rank": 4, "alpha": 16, "dropout": 0.25, "targets": ".*proj"}
    recipe = make_recipe(
        model={"path": str(runs("first")), "adapter": "continue"}, method=method, schedule={"steps": 1}
    )
    train(recipe)

    assert json.loads((recipe.output / "weights" / "adapter_config.json").read_text())["lora_dropout"] == 0.25


def test_only_an_adapter_can_go_on(saved_model, make_recipe):
    with pytest.raises(RecipeError, match=r"model.adapter: .* holds no adapter to go on with"):
        make_recipe(model={"path": str(saved_model("qwen3")), "adapter": "continue"})


def test_an_adapter_does_not_go_on_upon_another_base(runs, make_recipe, saved_model, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(saved_model("qwen3"), base)
    shutil.copytree(runs("first") / "weights", adapter)
    _set(adapter / CONFIG, base_model_name_or_path=str(base))
    recipe = make_recipe(model={"path": str(adapter), "adapter": "continue"}, method="lora")
    settle(recipe)
    (weights,) = base.glob("*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(weights).items()}, weights)

    with pytest.raises(UserError, match="has changed since the adapter"):
        settle(recipe)


def test_a_chain_of_three_is_shown_merged_in_order_and_its_last_goes_on(runs, make_recipe, saved_model):
    blocks = {"schedule": {"steps": 2, "learning_rate": 1e-2}, "method": {"type": "lora", "rank": 2}}
    second = make_recipe("two", model=str(runs("first")), **blocks)
    train(second)
    third = make_recipe("three", model=str(second.output), **blocks)
    train(third)
    fourth = make_recipe("four", model={"path": str(third.output), "adapter": "continue"}, **blocks)
    train(fourth)
    folders = [runs("first") / "weights", second.output / "weights", third.output / "weights"]
    by_hand = AutoModelForCausalLM.from_pretrained(saved_model("qwen3"), dtype=torch.float32)
    for folder in folders:
        by_hand = peft.PeftModel.from_pretrained(by_hand, folder).merge_and_unload()
    with torch.no_grad():
        expected = by_hand.eval()(input_ids=TOKENS).logits
    noticed = RunFolder(third.output).read("plan.json")["notices"]

    assert tuple(folders) == find_model(str(third.output)).adapters
    torch.testing.assert_close(logits(third.output), expected, rtol=1e-4, atol=1e-4)
    assert f"model: {saved_model('qwen3')} with {folders[0]}, then {folders[1]} merged into its weights" in noticed
    assert describe_adapter(str(third.output)).stands_on == describe_adapter(str(fourth.output)).stands_on
    assert describe_adapter(str(third.output)).stands_on == [str(folder) for folder in folders[:2]]


@pytest.mark.matrix
@pytest.mark.parametrize("name", [n for n in METHODS.names() if METHODS.get(n).adds_adapter and n not in MISSING])
def test_every_adapter_goes_on_as_it_was_or_says_why_not(name, saved_model, tmp_path):
    """It answers as when it was saved, and the same weights train."""
    spec = METHODS.parse(block(name))
    model, _ = applied(name, saved_model("qwen3"))
    spec.begin(model, start(model))
    training = {n for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        expected = model.eval()(input_ids=TOKENS).logits
    spec.save(model, tmp_path / "saved")
    base = AutoModelForCausalLM.from_pretrained(saved_model("qwen3"), dtype=torch.float32)
    if spec.cannot_continue:
        with pytest.raises(UserError, match=r"model\.adapter: "):
            spec.go_on(base, tmp_path / "saved")
        return
    found = METHODS.parse(name).go_on(base, tmp_path / "saved")

    assert training == {n for n, p in found.named_parameters() if p.requires_grad}
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(input_ids=TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


# --- take turns


def answer(talk: Talk) -> str:
    talk.forget()
    return "".join(talk.ask(QUESTION))


def alone(path: Path) -> str:
    return answer(Talk.load(str(path), None, GREEDY, "cpu"))


def test_adapters_take_turns_on_one_base(runs, saved_model):
    base = saved_model("qwen3")
    dialogue = Talk.load(
        str(base), None, GREEDY, "cpu", [f"one={runs('first')}", str(runs("second")), f"r={runs('rslora')}"]
    )
    said = [answer(dialogue)]
    for name in ("second", None, "r", "one"):
        dialogue.switch(name)
        said.append(answer(dialogue))

    assert [alone(p) for p in (runs("first"), runs("second"), base, runs("rslora"), runs("first"))] == said
    assert len(set(said)) == 4


def test_an_adapter_on_a_run_with_one_answers_as_it_does_alone(runs, make_recipe):
    second = make_recipe(model=str(runs("first")), schedule={"steps": 4, "learning_rate": 3e-2})
    train(second)
    dialogue = Talk.load(str(runs("first")), None, GREEDY, "cpu", [f"both={second.output}"])
    said = [answer(dialogue)]
    dialogue.switch(None)

    assert [alone(second.output), alone(runs("first"))] == [*said, answer(dialogue)]


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (["a={first}", "a={second}"], "two are called 'a'"),
        (["none={first}"], "has no name; write name=PATH, and none is the base's"),
        (["a={first}", "b={loha}"], "adapters of different kinds (loha, lora) do not share a base in memory"),
        (["a={full}"], "is not an adapter but a whole model"),
    ],
)
def test_adapters_that_cannot_take_turns_are_refused(adapters, said, runs, saved_model):
    words = [word.format(**{name: runs(name) for name in ("first", "second", "loha", "full")}) for word in adapters]
    with pytest.raises(UserError) as error:
        Talk.load(str(saved_model("qwen3")), None, GREEDY, "cpu", words)

    assert said in str(error.value)


def test_an_adapter_of_another_base_or_an_unknown_name_is_refused(runs, saved_model, tmp_path):
    shutil.copytree(runs("first") / "weights", tmp_path / "foreign")
    (tmp_path / "foreign" / "base_model.json").unlink()  # as others write adapters
    for adapter in (runs("first"), tmp_path / "foreign"):
        with pytest.raises(UserError, match=r"was trained on .*qwen3, not on .*qwen3-tied"):
            Talk.load(str(saved_model("qwen3-tied")), None, GREEDY, "cpu", [str(adapter)])
    dialogue = Talk.load(str(saved_model("qwen3")), None, GREEDY, "cpu", [str(runs("first"))])
    with pytest.raises(UserError, match=r"no adapter called 'frist' \(did you mean 'first'\?\); there are first"):
        dialogue.switch("frist")


def test_a_dialogue_switches_by_command(runs, saved_model, monkeypatch, capsys):
    lines = iter(
        ["/adapter", "moon", "/new", "/adapter second", "moon", "/adapter nosuch", "/adapter none", "/adapter"]
    )

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    adapters = [str(runs("first")), str(runs("second"))]
    talk(str(saved_model("qwen3")), None, None, GREEDY, "cpu", adapters)
    said = capsys.readouterr().out.splitlines()

    assert said[0] == "first answers; there are first, second, none"
    assert any(line.startswith("no adapter called 'nosuch'") for line in said)
    assert said[-1] == "none answers; there are first, second, none"


def test_the_commands_say_what_they_did(runs, saved_model, tmp_path, capsys):
    base, folder = str(saved_model("qwen3")), str(tmp_path / "made")
    words = [
        ["show", str(runs("first"))],
        ["add", str(runs("first")), str(runs("second")), "--weights", "0.5,0.5", "--to", f"{folder}/sum"],
        ["extract", str(runs("full")), base, "--rank", "2", "--to", f"{folder}/part"],
        ["convert", str(runs("loha")), "--to", f"{folder}/lora", "--json"],
    ]
    said = []
    for each in words:
        adapter_app(each, standalone_mode=False)
        said.append(capsys.readouterr().out)

    assert "kind        lora\nrank        4\nalpha       16\n" in said[0]
    assert f"wrote {folder}/sum; see what it is worth: tunesmith compare" in said[1]
    assert "LoRA of rank 2 on 15 linear layers\nof their difference (squared Frobenius norm): rank 1 " in said[2]
    assert "of the whole difference: model.embed_tokens.weight" in said[2]
    assert "k_norm.weight and 7 more; --whole saves" in said[2]
    assert json.loads(said[3])["rank"] == 16
    with pytest.raises(UserError, match="'a,b' is no list of numbers"):
        adapter_app(["add", "x", "--weights", "a,b", "--to", folder], standalone_mode=False)
