"""Tricks: noise, layers left out, averages of weights, longer contexts, new tokens, frozen embeddings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.core.files import read_jsonl
from tunesmith.engine.averaging import MovingAverage, mean_weights
from tunesmith.engine.checkpoint import list_checkpoints
from tunesmith.engine.example import Example
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.engine.pack import build_packs
from tunesmith.engine.phantom import blocks_of
from tunesmith.engine.regularization import Disturbance, longest_through
from tunesmith.models.load import find_model, load_tokenizer, model_from
from tunesmith.models.new_tokens import begin_tokens
from tunesmith.models.rope import RopeScaling, is_dynamic, scale_rope
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.export import export
from tunesmith.run.soup import soup
from tunesmith.run.train import resume, train
from tunesmith.templates.tokens import TokenSequence

ROPES = {
    "linear": {},
    "dynamic": {},
    "yarn": {"beta_fast": 16},
    "llama3": {"low_freq_factor": 1, "high_freq_factor": 2},
}


def examples(*sequences):
    return [Example((TokenSequence.trained_from(list(tokens), 1),)) for tokens in sequences]


def forest():
    shared = range(30, 40)
    return examples([*shared, 50, 51, 52, 53], [*shared, 60], range(70, 75))


def disturbed(folder, **settings):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = PackModel(base, base)
    model.disturb(Disturbance(base, **{"embedding_noise": 0.0, "layer_dropout": 0.0, **settings}))
    return model


def run_pack(model, pack, seed=1):
    torch.manual_seed(seed)
    return model(**pack_arguments(pack.to("cpu")))


def losses(folder):
    return [m["loss"] for m in read_jsonl(folder / "metrics.jsonl") if m["kind"] == "step"]


def weights_of(folder):
    (path,) = (folder / "weights").glob("*.safetensors")
    return load_file(path)


@pytest.fixture(scope="module")
def plain(make_recipe_in, tmp_path_factory):
    """Return the folder of a run without any trick, which ends with its last weights."""
    recipe = make_recipe_in(tmp_path_factory.mktemp("plain"), checkpoints={"use": "last"})
    train(recipe)
    return recipe.output


class Killed(BaseException):
    """The end of the process, as far as a test can have it."""


def stopped_after(recipe, step):
    """Train, die when a step after *step* has been reported, and go on."""

    def listener(event):
        if event["kind"] == "step" and event["step"] > step:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, listener)
    resume(recipe.output)


# --- noise on embeddings


@pytest.mark.parametrize("layout", ["prefix", "packed", "padded"])
def test_length_of_a_token_is_that_of_the_longest_sequence_through_it(layout):
    (pack,) = build_packs(forest(), layout, 2**31)
    found = longest_through(torch.from_numpy(pack.depth), torch.from_numpy(pack.reach)).numpy()
    expected = [
        max((pack.depth[j] for j in range(i, max(i + 1, pack.reach[i]))), default=0) + 1
        for i in range(len(pack.tokens))
    ]
    real = pack.reach > 0

    assert np.array_equal(found[real], np.array(expected)[real])
    assert set(found[real]) == {5, 11, 14}


def test_noise_is_within_neftunes_bound_and_only_in_training(saved_model):
    model = disturbed(saved_model("qwen3"), embedding_noise=5.0)
    (pack,) = build_packs(forest(), "prefix", 2**31)
    seen = []
    model.base.get_input_embeddings().register_forward_hook(lambda _m, _i, output: seen.append(output.detach()[0]))
    model.eval()
    quiet = run_pack(model, pack)
    model.train()
    loud = run_pack(model, pack)
    again = run_pack(model, pack)
    noise = (seen[1] - seen[0]).abs()[: len(pack.tokens)]  # what fills a pack up is nobody's
    bound = 5.0 / (longest_through(torch.from_numpy(pack.depth), torch.from_numpy(pack.reach)) * 32).sqrt()

    assert (quiet != loud).all()
    assert torch.equal(loud, again)
    assert (noise.amax(-1) <= bound + 1e-5).all()
    assert (noise.amax(-1) > bound * 0.7).all()


def test_noise_on_one_sequence_is_that_of_transformers(saved_model):
    """Trainers of transformers and trl scale by the padded length of the batch, the paper by the sequence's own."""
    folder = saved_model("qwen3")
    ours = disturbed(folder, embedding_noise=5.0).train()
    theirs = AutoModelForCausalLM.from_pretrained(folder).train().get_input_embeddings()
    theirs.neftune_noise_alpha = 5.0
    theirs.register_forward_hook(neftune_post_forward_hook)
    (pack,) = build_packs(examples(range(30, 51)), "packed", 2**31)
    seen = []
    ours.base.get_input_embeddings().register_forward_hook(lambda _m, _i, output: seen.append(output.detach()))
    run_pack(ours, pack)
    torch.manual_seed(1)
    expected = theirs(torch.from_numpy(pack.tokens)[None])

    torch.testing.assert_close(seen[0][:, : len(pack.tokens)], expected, rtol=0, atol=1e-5)


def test_runs_with_noise_differ_from_plain_ones_and_resume_bit_by_bit(plain, make_recipe):
    settings = {"regularization": {"embedding_noise": 5.0, "layer_dropout": 0.3}}
    train(make_recipe("whole", **settings))
    stopped_after(make_recipe("broken", **settings), 3)
    folders = {"plain": plain, **{name: make_recipe(name).output for name in ("whole", "broken")}}
    evaluated = [json.loads((folders[name] / "plan.json").read_text())["settled"]["layout"] for name in folders]

    assert losses(folders["plain"]) != losses(folders["whole"])
    assert losses(folders["whole"]) == losses(folders["broken"])
    assert evaluated == ["prefix"] * 3  # the checks saw no noise
    for name, weight in weights_of(folders["whole"]).items():
        assert torch.equal(weight, weights_of(folders["broken"])[name])


# --- blocks left out


@pytest.mark.parametrize(
    ("architecture", "layout"), [("qwen3", "prefix"), ("gpt2", "packed"), ("bloom-alibi", "padded")]
)
def test_a_block_left_out_gives_what_it_was_given(architecture, layout, saved_model):
    plain, base = (AutoModelForCausalLM.from_pretrained(saved_model(architecture)) for _ in range(2))
    for module in (*plain.modules(), *base.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    del blocks_of(plain)[:]
    plain.config.num_hidden_layers = 0
    blocks_of(base).requires_grad_(False)  # of those that train one would stay
    names = set(base.state_dict())
    model = PackModel(base, base)
    model.disturb(Disturbance(base, embedding_noise=0.0, layer_dropout=0.9999))
    (pack,) = build_packs(examples(range(30, 50)), layout, 2**31)
    found, expected = run_pack(model.train(), pack), run_pack(PackModel(plain, plain).train(), pack)

    assert torch.allclose(found, expected, atol=1e-5)
    assert set(base.state_dict()) == names
    assert not torch.allclose(run_pack(model.eval(), pack), expected, atol=1e-3)


def test_a_pass_never_leaves_out_all_blocks_that_train(saved_model):
    base = AutoModelForCausalLM.from_pretrained(saved_model("qwen3")).requires_grad_(False)
    blocks_of(base)[1].requires_grad_(True)
    model = PackModel(base, base).train()
    model.disturb(Disturbance(base, embedding_noise=0.0, layer_dropout=0.9999))
    (pack,) = build_packs(examples(range(30, 50)), "prefix", 2**31)

    assert run_pack(model, pack).requires_grad


# --- averages of weights


def test_moving_average_follows_its_formula():
    weight = torch.nn.Parameter(torch.zeros(1))
    average, expected = MovingAverage({"w": weight}, 0.5), 0.0
    for step in range(1, 6):
        with torch.no_grad():
            weight.fill_(float(step))
        average.update(step)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * step
    with average.in_place():
        held = float(weight.detach())

    assert held == pytest.approx(expected)
    assert float(weight.detach()) == 5.0


def test_ema_is_judged_and_saved_and_resumes_bit_by_bit(plain, make_recipe):
    settings = {"schedule": {"ema_decay": 0.9}, "checkpoints": {"use": "last"}}
    train(make_recipe("whole", **settings))
    stopped_after(make_recipe("broken", **settings), 3)
    raw, whole, broken = plain, *(make_recipe(name).output for name in ("whole", "broken"))
    (*_, (_, last)) = list_checkpoints(whole / "checkpoints")
    validations = [
        [m["loss"] for m in read_jsonl(f / "metrics.jsonl") if m["kind"] == "evaluation"] for f in (raw, whole)
    ]

    assert losses(raw) == losses(whole) == losses(broken)  # what trains is the same
    assert validations[0] != validations[1]
    trained = load_file(last / "average.safetensors")
    own = load_file(next((raw / "checkpoints").glob("step-00000006")) / "weights.safetensors")
    assert all(any(torch.equal(t, w) for t in trained.values()) for w in own.values())
    for name, weight in weights_of(whole).items():
        assert torch.equal(weight, weights_of(broken)[name])
    assert any(not torch.equal(w, weights_of(raw)[n]) for n, w in weights_of(whole).items())


def test_a_run_may_end_with_the_mean_of_its_checkpoints(make_recipe):
    recipe = make_recipe(method="full", checkpoints={"use": "average", "keep": 3})
    train(recipe)
    kept = [path for _, path in list_checkpoints(recipe.output / "checkpoints")]
    expected, found = mean_weights(kept), weights_of(recipe.output)

    assert len(kept) == 3
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, atol=1e-7)
    assert torch.allclose(
        expected["model.norm.weight"],
        torch.stack([load_file(p / "weights.safetensors")["model.norm.weight"] for p in kept]).mean(0),
    )


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            {"checkpoints": {"use": "average", "keep": 1}},
            r"checkpoints\.use: the average of one checkpoint is that one",
        ),
        (
            {"schedule": {"ema_decay": 0.9, "decay": "constant"}, "optimizer": "schedule_free"},
            r"schedule\.ema_decay: schedule_free averages the weights already",
        ),
        ({"model": {"scratch": {}, "new_tokens": ["<a>"]}}, r"model\.new_tokens: every token of a new model is new"),
        (
            {"method": "ia3", "model": {"new_tokens": ["<a>"]}},
            r"model\.new_tokens: ia3 trains no single rows of embeddings",
        ),
        ({"model": {"new_tokens": [" "]}}, r"model\.new_tokens: ' ' is no token"),
        ({"model": {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 3}}}, "linear has no beta_fast"),
        ({"model": {"rope_scaling": {"type": "yarn", "factor": 1}}}, "factor.*more than 1|greater than 1"),
        (
            {"model": {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4}}},
            r"high_freq_factor \(4\) must be more than low_freq_factor \(4\)",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_words(blocks, message, make_recipe, saved_model):
    if isinstance(blocks.get("model"), dict) and "scratch" not in blocks["model"]:
        blocks = {**blocks, "model": {"path": str(saved_model("qwen3")), **blocks["model"]}}
    with pytest.raises(RecipeError, match=message):
        make_recipe(**blocks)


# --- soups


def test_a_soup_is_the_weighted_mean_of_whole_models(saved_model, tmp_path):
    folder, other = saved_model("qwen3"), tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(folder).save_pretrained(other)
    made = soup([str(folder), str(other)], tmp_path / "soup", [0.75, 0.25])
    (a,), (b,) = folder.glob("*.safetensors"), made.glob("*.safetensors")

    for name, weight in load_file(a).items():
        assert torch.allclose(load_file(b)[name], weight + 0.25, atol=1e-6)
    assert load_contestant(str(made), "cpu").template.tokenizer.get_vocab()


def test_soups_of_what_differs_are_refused_by_name(saved_model, tmp_path):
    first, second = str(saved_model("qwen3")), str(saved_model("llama"))
    odd = tmp_path / "odd"
    shutil.copytree(first, odd)
    tokenizer = AutoTokenizer.from_pretrained(odd)
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(odd)

    with pytest.raises(UserError, match=r"cannot be averaged: model_type is qwen3 in one, llama in the other"):
        soup([first, second], tmp_path / "soup")
    with pytest.raises(UserError, match="their tokenizers differ, in '<other>' first"):
        soup([first, str(odd)], tmp_path / "soup")
    for shares in ([0.7, 0.7], [float("nan"), 1.0]):
        with pytest.raises(UserError, match=r"shares are at least 0 and add up to 1; found "):
            soup([first, str(odd)], tmp_path / "soup", shares)
    with pytest.raises(UserError, match=r"qwen3 is named twice; name it once, and give it a larger weight"):
        soup([first, first], tmp_path / "soup")
    with pytest.raises(UserError, match=r"odd is not empty; name a new folder"):
        soup([first, second], odd)
    with pytest.raises(UserError, match="at least 2 models; found 1"):
        soup([first], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


# --- longer contexts


@pytest.mark.parametrize("kind", ROPES)
def test_rotations_are_those_of_the_librarys_own_configuration(kind, saved_model):
    """Written out as users of transformers do."""
    written = {
        "linear": {},
        "dynamic": {},
        "yarn": {"beta_fast": 16, "original_max_position_embeddings": 64},
        "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 64},
    }
    given = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4, **written[kind]}
    context = 64 if kind == "dynamic" else 256
    expected = AutoConfig.from_pretrained(saved_model("llama"), rope_parameters=given, max_position_embeddings=context)
    found = AutoConfig.from_pretrained(saved_model("llama"), max_position_embeddings=64)
    before = LlamaRotaryEmbedding(found)
    scale_rope(found, RopeScaling(type=kind, factor=4, **ROPES[kind]))
    places, hidden = torch.arange(200)[None], torch.zeros(1, 200, 32)
    ours, theirs = (LlamaRotaryEmbedding(each) for each in (found, expected))

    assert found.max_position_embeddings == expected.max_position_embeddings
    assert all(map(torch.equal, ours(hidden, places), theirs(hidden, places)))
    assert not torch.equal(ours(hidden, places)[0], before(hidden, places)[0])
    assert is_dynamic(found) == (kind == "dynamic")


@pytest.mark.parametrize("kind", ROPES)
def test_longer_contexts_train_and_what_serves_has_them(kind, make_recipe, saved_model, tmp_path):
    short = tmp_path / "short"  # a context that the data, of up to 125 tokens, does not fit in
    shutil.copytree(saved_model("llama"), short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    blocks = {
        "model": {"path": str(short), "rope_scaling": {"type": kind, "factor": 4, **ROPES[kind]}},
        "schedule": {"steps": 1},
        "evaluation": {"every": 1},
    }
    recipe = make_recipe(**blocks)
    if kind == "dynamic":
        with pytest.raises(UserError, match=r"of over 64 tokens .*there are up to \d+\); use yarn"):
            train(recipe)
        recipe = make_recipe(**blocks, data={"max_tokens": 64})
    train(recipe)
    tuned = load_contestant(str(recipe.output), "cpu").model
    after = model_from(find_model(str(recipe.output)), torch.float32, merge=True).config

    assert np.isfinite(losses(recipe.output)).all()
    for found in (tuned.config, after):
        assert found.rope_parameters["rope_type"] == kind
        assert found.rope_parameters["factor"] == 4
        assert found.max_position_embeddings == (64 if kind == "dynamic" else 256)
    assert tuned.get_base_model().model.rotary_emb.rope_type == kind
    assert AutoConfig.from_pretrained(short).rope_parameters["rope_type"] == "default"  # the base stays as it is
    if kind == "yarn":
        written = export(str(recipe.output), tmp_path / "exported")
        assert AutoConfig.from_pretrained(written).rope_parameters == after.rope_parameters


def test_rope_is_refused_where_there_is_none(make_recipe, saved_model):
    model = {"path": str(saved_model("gpt2")), "rope_scaling": {"type": "yarn", "factor": 2}}
    with pytest.raises(UserError, match=r"model\.rope_scaling: gpt2 has no rotary positions to scale"):
        train(make_recipe(model=model))


# --- new tokens, frozen embeddings


def test_rows_of_new_tokens_begin_where_their_descriptions_are(make_recipe, saved_model):
    for architecture in ("qwen3", "qwen3-tied"):
        recipe = make_recipe(model={"path": str(saved_model(architecture)), "new_tokens": {"<味>": "mist", "<x>": ""}})
        tokenizer = load_tokenizer(recipe.model, tuple)
        base = AutoModelForCausalLM.from_pretrained(saved_model(architecture))
        rows = len(base.get_input_embeddings().weight)
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        begin_tokens(base, tokenizer, recipe.model.new_tokens, 0)
        ids = tokenizer("mist", add_special_tokens=False).input_ids
        for table in (base.get_input_embeddings().weight, base.get_output_embeddings().weight):
            known = table[:rows]
            assert torch.allclose(table[rows], known[ids].mean(0), atol=1e-6)
            assert torch.allclose(table[rows + 1], known.mean(0), atol=1e-3)
            assert not torch.equal(table[rows + 1], known.mean(0))


@pytest.mark.parametrize(
    ("method", "architecture"), [({"type": "lora", "rank": 4}, "qwen3"), ("full", "qwen3-tied")], ids=str
)
def test_new_tokens_train_and_load_with_what_was_trained(
    method, architecture, make_recipe, saved_model, data, tmp_path
):
    rows = json.loads(Path(data[0]).read_text("utf-8"))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**row, "output": f"<味>{row['output']}"} for row in rows]), encoding="utf-8")
    recipe = make_recipe(
        model={"path": str(saved_model(architecture)), "new_tokens": {"<味>": "mist", "<unused>": ""}},
        data={"train": str(path)},
        method=method,
        schedule={"steps": 8, "learning_rate": 2e-2},
    )
    train(recipe)
    tuned = load_contestant(str(recipe.output), "cpu")
    new = tuned.template.tokenizer.convert_tokens_to_ids("<味>")
    written = export(str(recipe.output), tmp_path / "exported")
    whole = AutoModelForCausalLM.from_pretrained(written)
    before = len(AutoTokenizer.from_pretrained(saved_model(architecture)))
    size = sum(f.stat().st_size for f in (recipe.output / "weights").glob("*.safetensors"))

    assert new == before
    assert tuned.template.encode(["<味>"])[0] == [new]
    assert len(whole.get_input_embeddings().weight) == before + 2
    if isinstance(method, dict):  # rows alone, not matrices
        assert size < 60_000
    last = losses(recipe.output)
    assert last[-1] < 0.85 * last[0]
    ids = torch.tensor([tuned.template.encode(["<味>mist"])[0]])
    with torch.no_grad():
        assert torch.allclose(tuned.model.eval()(ids).logits, whole.eval()(ids).logits, atol=1e-4)
    if isinstance(method, dict):
        again = make_recipe("more", model=str(recipe.output), method=method, schedule={"steps": 1})
        train(again)
        assert load_contestant(str(again.output), "cpu").model.config.vocab_size == before + 2
    with pytest.raises(UserError, match=r"model\.new_tokens: the tokenizer has '<味>' already"):
        train(make_recipe("twice", model={"path": str(recipe.output), "new_tokens": ["<味>"]}))


def test_new_tokens_that_would_not_train_are_refused_before_weights_load(make_recipe, saved_model):
    model = {"path": str(saved_model("qwen3")), "new_tokens": ["<味>"]}
    with pytest.raises(UserError, match="does not train the embeddings of <味>"):
        train(make_recipe(model=model, method={"type": "freeze", "last": 1}))
    with pytest.raises(UserError, match="does not train the embeddings of <味>"):
        train(make_recipe(model=model, method={"type": "full", "freeze_embeddings": True}))


def test_frozen_embeddings_stay_and_tied_heads_are_told_of(make_recipe, saved_model):
    said = []
    recipe = make_recipe(architecture="qwen3-tied", method={"type": "full", "freeze_embeddings": True})
    train(recipe, lambda event: said.append(event.get("text", "")))
    before = AutoModelForCausalLM.from_pretrained(saved_model("qwen3-tied")).state_dict()
    changed = {n for n, w in weights_of(recipe.output).items() if not torch.equal(w, before[n])}

    assert "model.embed_tokens.weight" not in changed
    assert "model.layers.0.mlp.up_proj.weight" in changed
    assert any("the output head of this model is the same matrix" in text for text in said)
