"""Every method, also one that is a new file: it trains what it says, saves, loads, merges and resumes."""

import importlib
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import tunesmith.methods
from tunesmith.core.errors import RecipeError, UserError
from tunesmith.engine.lora import fuse_lora
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.engine.pack import build_packs
from tunesmith.methods import METHODS, Start
from tunesmith.models.load import find_model, model_from
from tunesmith.run.export import export
from tunesmith.run.folder import RunFolder
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train

# what two-layer models of 32 to 48 inputs need instead of a method's defaults
SETTINGS = {
    **{name: {"rank": 4} for name in ("lora", "rslora", "dora", "lora_plus", "pissa")},
    **{name: {"rank": 4} for name in ("olora", "corda", "eva", "loftq")},
    **{name: {"rank": 4} for name in ("loha", "lokr", "hra", "hira", "glora", "deft", "peanut", "delora")},
    **{name: {"tokens": 4} for name in ("prompt_tuning", "p_tuning", "prefix_tuning")},
    "freeze": {"last": 1},
    "llama_pro": {"blocks": 1},
    "adalora": {"rank": 2, "initial_rank": 4},
    "oft": {"block_size": 8},
    "vera": {"rank": 16},
    "vblora": {"vector_length": 16, "vectors": 8},
    "randlora": {"rank": 4, "alpha": 80},
    "fourierft": {"frequencies": 50},
    "waveft": {"frequencies": 50},
    "miss": {"rank": 8},
    "shira": {"rank": 2},
    "road": {"group_size": 16},
    "gralora": {"rank": 8, "alpha": 16},
    "c3a": {"block_size": 16},
    "psoft": {"rank": 8, "alpha": 8},
}
# few weights, or weights far from the answer: they learn nothing in six steps at the usual rate
RATES = dict.fromkeys(("ia3", "p_tuning", "prompt_tuning", "prefix_tuning", "vblora", "vera", "road"), 0.2)
# names of linear layers that are not q_proj, or that are no torch.nn.Linear at all
ODD = ["gpt2", "phi", "bloom-alibi", "mpt-alibi", "gemma3-windowed", "mixtral-experts", "qwen3-experts", "qwen3-tied"]
# one for each thing that methods do in a way of their own; the rest is run by `make test-matrix`
SAMPLE = ("adalora", "corda", "dora", "eva", "full", "llama_pro", "lora", "pissa", "prefix_tuning", "prompt_tuning")
# loftq makes up for quantization, and has its own tests; corda needs a package
MISSING = {"loftq"} if find_spec("attr") else {"loftq", "corda"}
NAMES = [name for name in METHODS.names() if name not in MISSING]

every_method = pytest.mark.parametrize("name", NAMES)
sampled = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.matrix) for n in NAMES]
)
TOKENS = torch.arange(5, 60)[None]


def block(name: str, **settings) -> dict:
    return {"type": name, **SETTINGS.get(name, {}), **settings}


def applied(name: str, path, **settings) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model with the method on it, and the transformers model inside."""
    spec = METHODS.parse(block(name, **settings))
    torch.manual_seed(0)
    model = spec.apply(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    return model.eval(), spec.base_model(model)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def losses(events: list[dict], kind: str = "step") -> list[float]:
    return [event["loss"] for event in events if event["kind"] == kind]


def start(model) -> Start:
    """The beginning of a run of three steps on one text."""
    texts = [TOKENS, TOKENS.flip(1)]
    return Start(
        3, len(texts), lambda index: texts[index].numel(), lambda index: model(input_ids=texts[index]) and None
    )


@pytest.fixture(scope="module")
def ran(make_recipe_in, tmp_path_factory):
    """Return a function from a method's name to the folder of a run of six steps, trained when first asked for."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def run(name: str) -> Path:
        if name not in done:
            schedule = {"steps": 6, "batch_size": 24, "learning_rate": RATES.get(name, 2e-2)}
            checkpoints = {"every": 2, "keep": 3}
            recipe = make_recipe_in(folder, name, method=block(name), schedule=schedule, checkpoints=checkpoints)
            train(recipe)
            done[name] = recipe.output
        return done[name]

    return run


@sampled
def test_a_method_learns(name, ran, measured):
    found = losses(measured(ran(name)))

    assert found[-1] < found[0] - 0.02
    plan = RunFolder(ran(name)).read("plan.json")
    assert not any("no finite gradient" in notice for notice in plan["notices"])
    assert plan["settled"]["layout"] == "prefix"  # no method costs the packs


@every_method
def test_only_what_should_train_moves_and_all_of_it_gets_a_gradient(name, saved_model):
    model, _ = applied(name, saved_model("qwen3"))
    METHODS.parse(block(name)).begin(model, start(model))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    training = {n for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):  # B of LoRA is zero, so that A first gets a gradient in the second step; E of AdaLoRA likewise
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}

    assert training
    assert training == moved


@every_method
def test_what_is_saved_is_what_was_trained_and_stands_on_the_original_base(name, saved_model, tmp_path):
    spec = METHODS.parse(block(name))
    model, _ = applied(name, saved_model("qwen3"))
    spec.begin(model, start(model))
    untrained = logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    spec.save(model, tmp_path / "saved")
    loaded = model_from(find_model(str(tmp_path / "saved")), torch.float32)

    assert not list((tmp_path / "saved").glob("*.bin"))
    assert (logits(model) - untrained).abs().max() > 1e-3
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)


@every_method
def test_without_values_a_method_has_as_many_weights(name, saved_model):
    """A plan counts them on the device meta, before anything is loaded."""
    model, _ = applied(name, saved_model("qwen3"))
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved_model("qwen3")))
    planned = METHODS.parse(block(name)).apply(empty)

    assert weights(model) == weights(planned)


def weights(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@every_method
def test_layers_that_compute_otherwise_are_not_fused(name, saved_model):
    """One autograd step computes W + BA and nothing else: it must leave every other layer alone."""
    model, _ = applied(name, saved_model("qwen3"))
    plain = METHODS.get(name).__mro__[1].__name__ in ("AbstractLoRA", "AbstractResidualLoRA") and name != "dora"

    whole = AutoModelForCausalLM.from_pretrained(saved_model("qwen3"))
    assert (linear_layers(whole) if plain else 0) == fuse_lora(model)


@sampled
def test_layouts_have_one_loss(name, saved_model, make_recipe):
    """What is packed sees no other sample, and virtual tokens stand in front of each."""
    model, base = applied(name, saved_model("qwen3"))
    METHODS.parse(block(name)).begin(model, start(model))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    packed = PackModel(model, base).eval()
    examples = settle(make_recipe(method=block(name))).prepared.train.examples[:6]
    found = {}
    for layout in ("padded", "packed", "prefix"):
        (pack,) = build_packs(list(examples), layout, 2**20)
        tensors = pack.to(torch.device("cpu"))
        total = packed(**pack_arguments(tensors)).sum()
        found[layout] = (total, *torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad][:4]))

    torch.testing.assert_close(found["packed"], found["padded"], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found["prefix"], found["padded"], rtol=2e-3, atol=2e-3)


@sampled
def test_a_trained_method_becomes_one_plain_model_or_says_why_not(name, ran, tmp_path):
    """The export itself compares greedy tokens before and after."""
    path = ran(name)
    if METHODS.get(name).cannot_merge:
        with pytest.raises(UserError, match="cannot be merged"):
            export(str(path), tmp_path / "exported")
        return
    written = export(str(path), tmp_path / "exported")
    run = model_from(find_model(str(path)), torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)

    assert not list(written.glob("adapter*"))
    torch.testing.assert_close(logits(merged), logits(run), rtol=1e-3, atol=1e-3)


@sampled
def test_a_method_resumes_bit_by_bit(name, ran, measured, trained_weights, tmp_path):
    """A run that was killed after its second step ends as the one that was not."""
    whole, killed = ran(name), tmp_path / "killed"
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "weights")
    for step in (4, 6):
        shutil.rmtree(killed / "checkpoints" / f"step-{step:08d}")
    resume(killed)
    expected, found = trained_weights(whole), trained_weights(killed)

    assert measured(whole) == measured(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[weight], found[weight]) for weight in expected)


@sampled
def test_the_base_that_is_compared_with_is_the_base(name, ran):
    """Also where a switched-off adapter leaves something else."""
    judged = [RunFolder(ran(each)).read("evaluation.json") for each in ("full", name)]

    assert judged[0]["loss"]["base"] == pytest.approx(judged[1]["loss"]["base"], rel=1e-4)


def linear_layers(base) -> int:
    """Modules that hold a matrix to adapt, whatever their class, but for the output head."""
    head = base.get_output_embeddings()
    kinds = ("Linear", "Conv1D")
    return sum(type(m).__name__ in kinds and m is not head for m in base.modules())


@pytest.mark.parametrize("architecture", ODD)
def test_lora_finds_every_linear_layer_whatever_it_is_called(architecture, saved_model):
    plain = AutoModelForCausalLM.from_pretrained(saved_model(architecture))
    model, _ = applied("lora", saved_model(architecture))
    adapted = {name.partition(".lora_A")[0] for name, p in model.named_parameters() if ".lora_A" in name}

    assert len(adapted) >= linear_layers(plain) >= 2 * 2
    assert any("experts" in name for name in adapted) == ("experts" in architecture)


@pytest.mark.parametrize("architecture", ODD)
def test_lora_on_it_trains_and_becomes_one_plain_model(architecture, make_recipe, measured, tmp_path):
    schedule = {"steps": 5, "batch_size": 8, "learning_rate": 2e-2}
    recipe = make_recipe(architecture=architecture, method=block("lora"), schedule=schedule, evaluation={"every": 5})
    train(recipe)
    found = losses(measured(recipe.output))
    written = export(str(recipe.output), tmp_path / "exported")

    assert found[-1] < found[0] - 0.1
    run = model_from(find_model(str(recipe.output)), torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(run), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["mixtral-experts", "qwen3-experts"])
def test_routers_are_left_alone(architecture, saved_model):
    model, _ = applied("lora", saved_model(architecture))
    adapted = {name for name, p in model.named_parameters() if p.requires_grad}

    assert adapted
    assert not [name for name in adapted if ".gate." in name]


def oracle(config: dict, kind: str, path) -> list[float]:
    """Three steps of peft used directly."""
    torch.manual_seed(0)
    head = "lm_head"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != head]
    model = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", target_modules=linear, **config))
    return three_steps(model)


def three_steps(model) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


LORA = {"r": 4, "lora_alpha": 32}
ORACLES = {
    "lora": ("LoraConfig", LORA),
    "rslora": ("LoraConfig", {**LORA, "use_rslora": True}),
    "dora": ("LoraConfig", {**LORA, "use_dora": True}),
    "pissa": ("LoraConfig", {**LORA, "init_lora_weights": "pissa"}),
    "olora": ("LoraConfig", {**LORA, "init_lora_weights": "olora"}),
    "oft": ("OFTConfig", {"oft_block_size": 8}),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 8}),
}


@pytest.mark.parametrize("name", ORACLES)
def test_a_method_is_what_peft_makes_of_it(name, saved_model):
    kind, config = ORACLES[name]
    own = {"iterations": 0} if name == "pissa" else {}
    model, _ = applied(name, saved_model("qwen3"), **own)

    assert oracle(config, kind, saved_model("qwen3")) == pytest.approx(three_steps(model.train()), rel=1e-5)


@pytest.mark.skipif("corda" in MISSING, reason="needs attrs")
def test_corda_begins_as_the_base_and_moves_what_the_data_uses(saved_model):
    plain = logits(AutoModelForCausalLM.from_pretrained(saved_model("qwen3"), dtype=torch.float32))
    learn, keep = (applied("corda", saved_model("qwen3"), mode=mode)[0] for mode in ("learn", "keep"))
    for model, mode in ((learn, "learn"), (keep, "keep")):
        METHODS.parse(block("corda", mode=mode)).begin(model, start(model))
    size = [sum(float(p.detach().norm()) for n, p in m.named_parameters() if "lora_B" in n) for m in (learn, keep)]

    torch.testing.assert_close(logits(learn), plain, rtol=1e-3, atol=1e-3)
    assert size[0] > 2 * size[1]


def test_eva_begins_with_directions_of_the_data(saved_model):
    model, _ = applied("eva", saved_model("qwen3"))
    METHODS.parse(block("eva")).begin(model, start(model))
    a = next(p for n, p in model.named_parameters() if "lora_A" in n)

    torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=1e-4, atol=1e-4)


def test_eva_says_when_the_data_is_too_short(saved_model):
    model, _ = applied("eva", saved_model("qwen3"))
    short = Start(3, 2, lambda index: 3, lambda index: None)
    with pytest.raises(UserError, match="more tokens than the rank, 4; the first 2 have at most 3"):
        METHODS.parse(block("eva")).begin(model, short)


def test_adalora_ends_with_the_rank_it_was_given(ran):
    path = find_model(str(ran("adalora"))).adapter / "adapter_config.json"
    kept = [sum(each) for each in json.loads(path.read_text("utf-8"))["rank_pattern"].values()]

    assert sum(kept) <= 2 * len(kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="peft computes it on a GPU")
def test_loftq_brings_four_bit_weights_nearer_to_the_original(tmp_path):
    path = tmp_path / "model"
    # blocks of 64 numbers are quantized together
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", num_hidden_layers=2, head_dim=16, vocab_size=100, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    whole = logits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    far = []
    for name in ("lora", "loftq"):
        model, spec = AutoModelForCausalLM.from_pretrained(path, **four_bits()), METHODS.parse(block(name))
        tuned = spec.apply(model)
        spec.begin(tuned, start(tuned))
        with torch.no_grad():
            far.append((tuned.eval()(input_ids=TOKENS.cuda()).logits.cpu() - whole).norm())

    assert far[1] < 0.8 * far[0]


def four_bits() -> dict:
    kind = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    return {"dtype": torch.float32, "quantization_config": BitsAndBytesConfig(load_in_4bit=True, **kind)}


def test_loftq_says_what_it_needs(saved_model, make_recipe):
    plain, _ = applied("loftq", saved_model("qwen3"))
    with pytest.raises(UserError, match="not quantized"):
        METHODS.parse(block("loftq")).begin(plain, start(plain))
    with pytest.raises(RecipeError, match=r"method: loftq .*not quantized(?s:.*)model\.quantization"):
        make_recipe(method=block("loftq"))


def test_lora_plus_lets_b_learn_faster(ran, make_recipe):
    method, optimizer = METHODS.parse(block("lora_plus", ratio=8)), make_recipe().optimizer
    model = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2), "lora_B": torch.nn.Linear(2, 2)})
    built = optimizer.model_copy(update=method.optimizer_settings()).build(model, 1e-3)
    rates = {group["lr"] for group in built.param_groups}

    assert {1e-3, 8e-3} == rates
    with pytest.raises(RecipeError, match=r"optimizer\.lora_plus_ratio.*4 is not method\.ratio = 8"):
        make_recipe(method=block("lora_plus", ratio=8), optimizer={"type": "adamw", "lora_plus_ratio": 4})


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3-windowed", "qwen3-experts"])
def test_llama_pro_changes_nothing_and_is_loaded_with_more_blocks(architecture, saved_model, tmp_path):
    path = saved_model(architecture)
    before = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model, _ = applied("llama_pro", path, blocks=2)
    METHODS.parse(block("llama_pro")).save(model, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    trained = {".".join(n.split(".")[:3]) for n, p in model.named_parameters() if p.requires_grad}

    assert loaded.config.num_hidden_layers == 4
    assert {"model.layers.1", "model.layers.3"} == trained
    torch.testing.assert_close(logits(loaded), logits(before), rtol=1e-4, atol=1e-4)
    assert loaded.generate(TOKENS, max_new_tokens=8).tolist() == before.generate(TOKENS, max_new_tokens=8).tolist()


def test_an_adapter_that_cannot_be_merged_is_no_start_for_another(ran, make_recipe):
    with pytest.raises(UserError, match="prompt_tuning cannot be merged"):
        train(make_recipe("next", model=str(ran("prompt_tuning"))))


def test_what_is_excluded_and_which_blocks(saved_model):
    model, _ = applied("lora", saved_model("qwen3"), exclude=["q_proj", "down_proj"], layers=[1])
    adapted = {n.partition(".lora_")[0].split("model.layers.")[1] for n, _ in model.named_parameters() if ".lora_" in n}

    assert {"1"} == {name.partition(".")[0] for name in adapted}
    assert {"k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"} == {name.rpartition(".")[2] for name in adapted}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": ["qproj"]}, r"method\.exclude: no module is called 'qproj' \(did you mean 'q_proj'\?\)"),
        ({"targets": ".*qproj"}, r"method\.targets: '\.\*qproj' is a pattern that must match the whole name"),
        ({"layers": [2]}, r"method\.layers: no block 2; the model has 2"),
        ({"exclude": ".*"}, "leave nothing to adapt"),
        ({"rank_pattern": {"down": 2}}, r"method\.rank_pattern: 'down' fits the end of no adapted module's name"),
    ],
)
def test_choices_that_fit_nothing_are_refused(settings, message, saved_model):
    with pytest.raises(UserError, match=message):
        applied("lora", saved_model("qwen3"), **settings)


def test_embeddings_of_new_tokens_train_alone(saved_model):
    model, base = applied("lora", saved_model("qwen3"), trained_tokens=[7, 9])
    before = base.get_input_embeddings()(TOKENS).detach().clone()
    three_steps(model.train())
    moved = {int(token) for token in TOKENS[0][(base.get_input_embeddings()(TOKENS) != before).any(-1)[0]]}

    assert {7, 9} == moved


def test_targets_choose_the_layers(saved_model):
    model, _ = applied("lora", saved_model("qwen3"), targets=["q_proj", "v_proj"])
    adapted = {n.partition(".lora_")[0].rpartition(".")[2] for n, _ in model.named_parameters() if ".lora_" in n}

    assert {"q_proj", "v_proj"} == adapted


def test_targets_that_fit_nothing_are_refused_by_name(saved_model):
    with pytest.raises(UserError, match=r"method\.targets: .*qproj"):
        applied("lora", saved_model("qwen3"), targets=["qproj"])


def test_modules_to_save_train_whole_and_are_kept(saved_model, tmp_path):
    model, _ = applied("lora", saved_model("qwen3"), modules_to_save=["embed_tokens"])
    (name,) = (n for n, p in model.named_parameters() if p.requires_grad and "embed_tokens" in n)
    with torch.no_grad():
        model.get_parameter(name).add_(1.0)
    METHODS.parse(block("lora", modules_to_save=["embed_tokens"])).save(model, tmp_path / "saved")

    torch.testing.assert_close(logits(model_from(find_model(str(tmp_path / "saved")), torch.float32)), logits(model))


def test_an_adapter_is_not_put_on_weights_that_nobody_keeps(make_recipe, data):
    with pytest.raises(RecipeError, match=r"method: lora .*model\.scratch.*(?s:.*)use method: full"):
        make_recipe(model={"scratch": {"architecture": "qwen3"}})


def trained_names(path, **settings) -> set[str]:
    model, _ = applied("freeze", path, **settings)
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_freeze_counts_blocks_from_both_ends(saved_model):
    path = saved_model("qwen3")
    first, last = trained_names(path, first=1, last=0), trained_names(path, first=0, last=1)

    assert {"model.layers.0"} == {".".join(n.split(".")[:3]) for n in first}
    assert {"model.layers.1"} == {".".join(n.split(".")[:3]) for n in last}
    assert first | last == trained_names(path, first=1, last=1)


def test_freeze_trains_what_patterns_name(saved_model):
    assert {"lm_head.weight", "model.norm.weight"} == trained_names(
        saved_model("qwen3"), last=0, also=["^lm_head", r"model\.norm"]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last": 3}, r"first \+ last = 3, but the model has 2 blocks"),
        ({"also": ["lm-head"]}, r"no weight's name contains a match of 'lm-head'"),
    ],
)
def test_freeze_refuses_what_the_model_has_not(settings, message, saved_model):
    with pytest.raises(UserError, match=message):
        applied("freeze", saved_model("qwen3"), **settings)


ONLY_NORMS = '''"""Only norms: train the scales of the normalisation layers."""

from typing import Any

from tunesmith.methods._whole import AbstractWholeModel


class OnlyNorms(AbstractWholeModel):
    """Train every norm and nothing else."""

    final: bool = True
    """Whether the last norm trains, too."""

    def apply(self, model: Any) -> Any:
        """Mark them."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name and (self.final or "layers" in name))
        return model
'''


@pytest.fixture
def new_file(tmp_path, monkeypatch):
    """A method in a folder of its own, as a distribution or a colleague would add it."""
    folder = tmp_path / "more_methods"
    folder.mkdir()
    (folder / "only_norms.py").write_text(ONLY_NORMS, "utf-8")
    monkeypatch.setattr(tunesmith.methods, "__path__", [*tunesmith.methods.__path__, str(folder)])
    importlib.invalidate_caches()
    yield "only_norms"
    sys.modules.pop("tunesmith.methods.only_norms", None)
    vars(tunesmith.methods).pop("only_norms", None)


def test_a_method_is_added_by_adding_a_file(new_file, make_recipe, saved_model, trained_weights):
    recipe = make_recipe(method={"type": new_file, "final": False}, schedule={"steps": 2})
    outcome = train(recipe)
    before = AutoModelForCausalLM.from_pretrained(saved_model("qwen3")).state_dict()
    after = trained_weights(recipe.output)

    assert METHODS.summaries()[new_file] == "Only norms: train the scales of the normalisation layers."
    assert {"type": new_file, "final": False} == outcome.folder.recipe().method.model_dump()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "norm" in name and "layers" in name} == moved
    assert Path(str(sys.modules["tunesmith.methods.only_norms"].__file__)).name == "only_norms.py"
