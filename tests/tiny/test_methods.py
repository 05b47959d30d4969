"""Every method, also one that is a new file: it trains what it says, saves, loads, merges and resumes."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tunesmith.methods
from tunesmith.core.errors import RecipeError, UserError
from tunesmith.methods import METHODS
from tunesmith.models.load import find_model, model_from
from tunesmith.run.export import export
from tunesmith.run.train import resume, train

# what two-layer models need instead of a method's defaults
SETTINGS = {"lora": {"rank": 4}, "freeze": {"last": 1}}
# names of linear layers that are not q_proj, or that are no torch.nn.Linear at all
ODD = ["gpt2", "phi", "bloom-alibi", "mpt-alibi", "gemma3-windowed", "mixtral-experts", "qwen3-experts", "qwen3-tied"]

every_method = pytest.mark.parametrize("name", METHODS.names())
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


@every_method
def test_a_method_learns(name, make_recipe, measured):
    schedule = {"steps": 30, "batch_size": 8, "learning_rate": 2e-2}
    recipe = make_recipe(method=block(name), schedule=schedule, evaluation={"every": 30}, checkpoints={"every": 30})
    train(recipe)
    found = losses(measured(recipe.output))

    assert found[-1] < found[0] - 1


@every_method
def test_only_what_should_train_moves_and_all_of_it_gets_a_gradient(name, saved_model):
    model, _ = applied(name, saved_model("qwen3"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    training = {n for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):  # B of LoRA is zero, so that A first gets a gradient in the second step
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}

    assert training
    assert training == moved


@every_method
def test_what_is_saved_is_what_was_trained(name, saved_model, tmp_path):
    model, _ = applied(name, saved_model("qwen3"))
    untrained = logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    METHODS.parse(block(name)).save(model, tmp_path / "saved")
    loaded = model_from(find_model(str(tmp_path / "saved")), torch.float32)

    assert not list((tmp_path / "saved").glob("*.bin"))
    assert (logits(model) - untrained).abs().max() > 0.1
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


@every_method
def test_a_trained_method_becomes_one_plain_model(name, make_recipe, tmp_path):
    recipe = make_recipe(method=block(name), schedule={"learning_rate": 2e-2})
    train(recipe)
    written = export(str(recipe.output), tmp_path / "exported")
    run = model_from(find_model(str(recipe.output)), torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)

    assert not list(written.glob("adapter*"))
    torch.testing.assert_close(logits(merged), logits(run), rtol=1e-4, atol=1e-4)


class Killed(BaseException):
    """The end of the process."""


def die_at_step_three(event) -> None:
    if event["kind"] == "step" and event["step"] == 3:
        raise Killed


@every_method
def test_a_method_resumes_bit_by_bit(name, make_recipe, measured, trained_weights):
    whole, killed = make_recipe("whole", method=block(name)), make_recipe("killed", method=block(name))
    train(whole)
    with pytest.raises(Killed):
        train(killed, die_at_step_three)
    resume(killed.output)
    expected, found = trained_weights(whole.output), trained_weights(killed.output)

    assert measured(whole.output) == measured(killed.output)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[weight], found[weight]) for weight in expected)


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
