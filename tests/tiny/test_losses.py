"""The chunked losses are those of the whole logits, values and gradients."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunesmith.engine import losses
from tunesmith.engine.losses import log_probabilities, weighted_log_likelihood
from tunesmith.engine.penalties import Penalties
from tunesmith.stages import STAGES

PREDICTIONS, HIDDEN, VOCABULARY = 53, 16, 61
VARIANTS = {
    "plain": {},
    "capped": {"cap": 2.0},
    "scaled": {"scale": 0.3},
    "scaled-and-capped": {"cap": 1.5, "scale": 1.7},
}


def weigh_each(hidden, head, target, weight, **options) -> torch.Tensor:
    """The sum by way of every log-probability."""
    return (log_probabilities(hidden, head, target, **options) * weight).sum()


def weigh_at_once(hidden, head, target, weight, **options) -> torch.Tensor:
    """The sum whose gradients are made in the forward pass."""
    return weighted_log_likelihood(hidden, head, target, weight, **options).total


SUMS = {"each": weigh_each, "at once": weigh_at_once}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
both_sums = pytest.mark.parametrize("summed", SUMS.values(), ids=SUMS.keys())


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch) -> None:
    """Room for all logits at once, or for 16 rows in blocks of 5: the last of 53 fills neither."""
    if request.param == "many chunks":
        monkeypatch.setattr(losses, "ROW_STEP", 16)
        monkeypatch.setattr(losses, "CHUNK_BYTES", 1)
        monkeypatch.setattr(losses, "BLOCK_BYTES", 5 * 4 * VOCABULARY)


def make_case(*, bias: bool, dtype: torch.dtype = torch.float32):
    """Hidden states, a head, targets (some of them twice) and what the loss makes of each prediction."""
    torch.manual_seed(0)
    hidden = torch.randn(PREDICTIONS, HIDDEN).to(dtype).requires_grad_()
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias).to(dtype)
    target = torch.randint(VOCABULARY, (PREDICTIONS,))
    return hidden, head, target, torch.randn(PREDICTIONS)


def plain(hidden: torch.Tensor, head: nn.Module, target: torch.Tensor, cap: float = 0, scale: float = 1):
    """What the log-probabilities are said to be, all logits at once."""
    logits = head(hidden).float() * scale
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1)


@pytest.mark.parametrize("bias", [False, True])
@every_variant
def test_log_probabilities_are_those_of_the_whole_logits(chunks, variant, bias):
    hidden, head, target, _ = make_case(bias=bias)
    expected = plain(hidden, head, target, **VARIANTS[variant])

    found = log_probabilities(hidden, head, target, **VARIANTS[variant])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@both_sums
@pytest.mark.parametrize("bias", [False, True])
@every_variant
def test_sums_and_their_gradients_are_those_of_the_whole_logits(chunks, variant, bias, summed):
    hidden, head, target, weight = make_case(bias=bias)
    inputs = [hidden, *head.parameters()]
    expected = (plain(hidden, head, target, **VARIANTS[variant]) * weight).sum()
    found = summed(hidden, head, target, weight, **VARIANTS[variant])

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # a step divides its loss: the gradient that comes in is not 1
    pairs = zip(torch.autograd.grad(found * 0.3, inputs), torch.autograd.grad(expected * 0.3, inputs), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@both_sums
@every_variant
def test_gradients_are_the_derivatives_of_the_values(chunks, variant, summed):
    """Against finite differences, so that a mistake shared with the formula above would show."""
    hidden, head, target, weight = make_case(bias=True)
    (gradient,) = torch.autograd.grad(summed(hidden, head, target, weight, **VARIANTS[variant]), [hidden])
    direction, step = torch.randn_like(hidden), 1e-2
    with torch.no_grad():
        ahead = summed(hidden + step * direction, head, target, weight, **VARIANTS[variant])
        behind = summed(hidden - step * direction, head, target, weight, **VARIANTS[variant])

    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-3, atol=1e-2)


@both_sums
def test_bfloat16_is_right_within_its_precision(chunks, summed):
    hidden, head, target, weight = make_case(bias=True, dtype=torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, *head.parameters())]
    chosen = nn.functional.linear(*exact).log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    expected, found = (chosen * weight).sum(), summed(hidden, head, target, weight)

    assert found.dtype == torch.float32
    torch.testing.assert_close(log_probabilities(hidden, head, target), chosen, rtol=0, atol=0.03)
    inputs = [hidden, *head.parameters()]
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, exact), strict=True):
        assert (one.float() - other).norm() <= 0.02 * other.norm()


@both_sums
def test_autocast_computes_the_products_in_its_type_and_keeps_the_sums_in_float32(chunks, summed):
    hidden, head, target, weight = make_case(bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = (plain(hidden, head, target) * weight).sum()
        found = summed(hidden, head, target, weight)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    inputs = [hidden, head.weight]
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * other.norm()


@both_sums
def test_a_frozen_head_gets_no_gradient_and_passes_it_on(chunks, summed):
    hidden, head, target, weight = make_case(bias=True)
    head.requires_grad_(False)
    summed(hidden, head, target, weight).backward()
    (expected,) = torch.autograd.grad((plain(hidden, head, target) * weight).sum(), [hidden])

    assert all(parameter.grad is None for parameter in head.parameters())
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-5)


@both_sums
def test_values_are_the_same_without_gradients(chunks, summed):
    hidden, head, target, weight = make_case(bias=True)
    expected = summed(hidden, head, target, weight)
    with torch.no_grad():
        found = summed(hidden, head, target, weight)

    assert torch.equal(expected, found)


@both_sums
def test_a_head_tied_to_the_embedding_gets_the_gradients_of_both(summed):
    torch.manual_seed(0)
    embedding, head = nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)
    head.weight = embedding.weight
    tokens, target = torch.randint(VOCABULARY, (PREDICTIONS,)), torch.randint(VOCABULARY, (PREDICTIONS,))
    found = summed(embedding(tokens), head, target, torch.ones(PREDICTIONS))
    expected = plain(embedding(tokens), head, target).sum()

    gradients = (torch.autograd.grad(total, [embedding.weight]) for total in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


class Doubled(nn.Linear):
    """A head that is not what its weight says, as quantized and adapted ones are."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden)


@both_sums
@every_variant
def test_a_head_of_another_kind_is_called_not_guessed(chunks, variant, summed):
    hidden, _, target, weight = make_case(bias=False)
    head = Doubled(HIDDEN, VOCABULARY)
    inputs = [hidden, *head.parameters()]
    expected = (plain(hidden, head, target, **VARIANTS[variant]) * weight).sum()
    found = summed(hidden, head, target, weight, **VARIANTS[variant])

    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["adapted", "trained beside"])
def peft_head(request):
    """A head inside peft: with LoRA on it and dropout, or as a whole in ``modules_to_save``."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=2000, **sizes))
    chosen = {"target_modules": ["lm_head"]} if request.param == "adapted" else {"modules_to_save": ["lm_head"]}
    model = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"], "init_lora_weights": False, **chosen}))
    return model.get_base_model().get_output_embeddings()


@both_sums
def test_a_head_inside_peft_gets_the_gradients_of_whole_logits(chunks, peft_head, summed):
    hidden, _, target, weight = make_case(bias=False)
    inputs = [hidden, *(p for p in peft_head.parameters() if p.requires_grad)]
    expected = (plain(hidden, peft_head, target) * weight).sum()
    found = summed(hidden, peft_head, target, weight)

    assert type(peft_head) is not nn.Linear
    assert len(inputs) > 1
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@both_sums
def test_dropout_in_a_head_is_the_same_in_both_passes(chunks, summed):
    """With a linear head the gradient by its bias is a sum over rows and does not see the mask; by hidden it does."""
    hidden, linear, target, weight = make_case(bias=False)
    head = nn.Sequential(nn.Dropout(0.5), linear)
    torch.manual_seed(1)
    found = summed(hidden, head, target, weight)
    dropped = torch.autograd.grad(found, [hidden])[0] == 0
    torch.manual_seed(1)
    again = summed(hidden, head, target, weight)

    assert found == again
    assert 0.3 < dropped.float().mean() < 0.7


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


@both_sums
@pytest.mark.parametrize("kind", [nn.Linear, Doubled])
def test_no_tensor_holds_the_logits_of_all(kind, summed, monkeypatch):
    """Neither pass, whether the head is a plain matrix or something to be called."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", 1)
    predictions, vocabulary = 400, 500
    hidden, head = torch.randn(predictions, 4, requires_grad=True), kind(4, vocabulary, bias=False)
    target, weight = torch.randint(vocabulary, (predictions,)), torch.ones(predictions)
    with Largest() as largest:
        summed(hidden, head, target, weight).backward()

    assert 0 < largest.elements <= losses.ROW_STEP * vocabulary


PENALTIES = {
    "smoothed": Penalties(label_smoothing=0.1),
    "z": Penalties(z_loss=0.02),
    "both": Penalties(label_smoothing=0.3, z_loss=0.01),
}


def penalized(hidden, head, target, weight, penalties: Penalties, cap: float = 0, scale: float = 1):
    """The loss by torch's own label smoothing, and the z-loss as it is written down, all logits at once."""
    logits = head(hidden).float() * scale
    logits = cap * torch.tanh(logits / cap) if cap else logits
    smoothed = nn.functional.cross_entropy(logits, target, label_smoothing=penalties.label_smoothing, reduction="none")
    return (weight * (smoothed + penalties.z_loss * logits.logsumexp(-1).square())).sum()


@pytest.mark.parametrize("penalties", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("kind", ["linear", "frozen", "bias", "module"])
@every_variant
def test_penalties_are_those_of_torch(chunks, variant, kind, penalties):
    hidden, head, target, weight = make_case(bias=kind == "bias")
    if kind == "module":
        head = Doubled(HIDDEN, VOCABULARY)
    head.requires_grad_(kind != "frozen")
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    expected = penalized(hidden, head, target, weight, penalties, **VARIANTS[variant])
    found = weighted_log_likelihood(hidden, head, target, -weight, penalties=penalties, **VARIANTS[variant])

    torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=2e-5)
    wanted = torch.autograd.grad(expected * 0.3, inputs)
    for one, other in zip(torch.autograd.grad(found.total * 0.3, inputs), wanted, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("kind", [nn.Linear, Doubled])
def test_terms_are_the_plain_loss_and_what_each_penalty_adds(kind):
    torch.manual_seed(0)
    hidden, target, weight = torch.randn(9, HIDDEN), torch.randint(VOCABULARY, (9,)), torch.rand(9)
    head = kind(HIDDEN, VOCABULARY)
    plain_loss, smoothed, both = (
        penalized(hidden, head, target, weight, each)
        for each in (Penalties(), Penalties(label_smoothing=0.3), PENALTIES["both"])
    )
    found = weighted_log_likelihood(hidden, head, target, -weight, penalties=PENALTIES["both"])

    assert not found.terms.requires_grad
    torch.testing.assert_close(found.terms, torch.stack((plain_loss, smoothed - plain_loss, both - smoothed)))


def test_penalties_in_bfloat16_are_right_within_its_precision(chunks):
    hidden, head, target, weight = make_case(bias=True, dtype=torch.bfloat16)
    exact_head, exact_hidden = copy.deepcopy(head).float(), hidden.detach().float().requires_grad_()
    exact = [exact_hidden, *exact_head.parameters()]
    expected = penalized(exact_hidden, exact_head, target, weight, PENALTIES["both"])
    found = weighted_log_likelihood(hidden, head, target, -weight, penalties=PENALTIES["both"]).total

    assert abs(found - expected) <= 0.01 * abs(expected)
    inputs = [hidden, *head.parameters()]
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, exact), strict=True):
        assert (one.float() - other).norm() <= 0.02 * other.norm()


def test_a_tied_head_gets_the_gradients_of_both_with_penalties():
    torch.manual_seed(0)
    embedding, head = nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)
    head.weight = embedding.weight
    tokens, target = torch.randint(VOCABULARY, (PREDICTIONS,)), torch.randint(VOCABULARY, (PREDICTIONS,))
    weight, penalties = torch.rand(PREDICTIONS), PENALTIES["both"]
    found = weighted_log_likelihood(embedding(tokens), head, target, -weight, penalties=penalties).total
    expected = penalized(embedding(tokens), head, target, weight, penalties)

    one, other = (torch.autograd.grad(total, [embedding.weight])[0] for total in (found, expected))
    assert (one - other).norm() <= 1e-6 * other.norm()


@settings(max_examples=60, deadline=None)
@given(
    predictions=st.integers(0, 70),
    vocabulary=st.integers(1, 90),
    step=st.integers(1, 20),
    rows=st.integers(1, 40),
    block=st.integers(1, 10),
    seed=st.integers(0, 2**31),
    zeros=st.floats(0, 1),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.5]),
)
def test_any_sizes_and_weights_give_the_plain_formula(
    predictions, vocabulary, step, rows, block, seed, zeros, smoothing, z_loss
):
    """Coefficients of both signs, some of them zero; chunks and blocks that fit and that do not."""
    torch.manual_seed(seed)
    hidden, head = torch.randn(predictions, 8, requires_grad=True), nn.Linear(8, vocabulary)
    target = torch.randint(vocabulary, (predictions,))
    weight = torch.randn(predictions) * (torch.rand(predictions) >= zeros)
    penalties = Penalties(smoothing, z_loss)
    inputs = [hidden, *head.parameters()]
    expected = penalized(hidden, head, target, weight, penalties)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "ROW_STEP", step)
        patch.setattr(losses, "CHUNK_BYTES", rows * 4 * vocabulary)
        patch.setattr(losses, "BLOCK_BYTES", block * 4 * vocabulary)
        found = weighted_log_likelihood(hidden, head, target, -weight, penalties=penalties).total
        each = (log_probabilities(hidden, head, target) * weight).sum()
        by_each = torch.autograd.grad(each, inputs)

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    wanted = torch.autograd.grad(expected, inputs)
    for one, other in zip(torch.autograd.grad(found, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    plain_sum = (plain(hidden, head, target) * weight).sum()
    for one, other in zip(by_each, torch.autograd.grad(plain_sum, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_made_on_the_way_are_given_once():
    """They are scaled where they lie: a second backward pass must not return wrong ones."""
    hidden, head, target, weight = make_case(bias=True)
    total = weigh_at_once(hidden, head, target, weight)
    total.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_settings_become_penalties(name):
    stage = STAGES.get(name)

    assert stage().penalties() == Penalties()
    assert stage(label_smoothing=0.1, z_loss=1e-4).penalties() == Penalties(0.1, 1e-4)


@pytest.mark.parametrize("layout", ["prefix", "padded"])
def test_a_run_reports_the_plain_loss_and_penalties_beside_it(make_recipe, measured, layout):
    """At a rate of next to nothing both runs keep their weights, so that their plain losses must be the same."""
    from tunesmith.run.train import train

    found = {}
    for name, stage in (("plain", "sft"), ("penalized", {"type": "sft", "label_smoothing": 0.2, "z_loss": 0.01})):
        schedule = {"steps": 1, "learning_rate": 1e-12}
        recipe = make_recipe(name, stage=stage, schedule=schedule, engine={"layout": layout})
        train(recipe)
        events = measured(recipe.output)
        found[name] = [next(e for e in events if e["kind"] == kind) for kind in ("step", "evaluation")]

    for one, other in zip(*found.values(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    step, evaluation = found["penalized"]
    assert step["z_loss"] > 0
    assert step["label_smoothing_loss"] != 0  # below 0 where the model is worse than chance
    assert "z_loss" not in evaluation
    assert step["gradient_norm"] != pytest.approx(found["plain"][0]["gradient_norm"], rel=1e-3)


@both_sums
def test_nothing_to_predict_is_no_mistake(summed):
    hidden, head, target, weight = make_case(bias=True)

    assert summed(hidden[:0], head, target[:0], weight[:0]).item() == 0
