"""The chunked losses are those of the whole logits, values and gradients."""

import pytest
import torch
from torch import nn

from tunesmith.engine import losses
from tunesmith.engine.losses import log_probabilities, weighted_log_likelihood

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


# two ways to one sum; the second makes its gradients in the forward pass
SUMS = {"each": weigh_each, "at once": weighted_log_likelihood}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
both_sums = pytest.mark.parametrize("summed", SUMS.values(), ids=SUMS.keys())


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch) -> None:
    """Room for all logits at once, or for the 16 that a chunk has at least: the last of 53 is then not full."""
    if request.param == "many chunks":
        monkeypatch.setattr(losses, "CHUNK_BYTES", 1)


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
def test_a_head_of_another_kind_is_called_not_guessed(variant, summed):
    hidden, _, target, weight = make_case(bias=False)
    head = Doubled(HIDDEN, VOCABULARY)
    expected = (plain(hidden, head, target, **VARIANTS[variant]) * weight).sum()

    torch.testing.assert_close(summed(hidden, head, target, weight, **VARIANTS[variant]), expected)


@both_sums
def test_nothing_to_predict_is_no_mistake(summed):
    hidden, head, target, weight = make_case(bias=True)

    assert summed(hidden[:0], head, target[:0], weight[:0]).item() == 0
