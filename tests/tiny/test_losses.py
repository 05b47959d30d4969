"""The chunked log-probabilities are those of the whole logits, values and gradients."""

import pytest
import torch
from torch import nn

from tunesmith.engine import losses
from tunesmith.engine.losses import log_probabilities

PREDICTIONS, HIDDEN, VOCABULARY = 53, 16, 61
VARIANTS = {
    "plain": {},
    "capped": {"cap": 2.0},
    "scaled": {"scale": 0.3},
    "scaled-and-capped": {"cap": 1.5, "scale": 1.7},
}


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
    """What the function says it computes, all logits at once."""
    logits = head(hidden).float() * scale
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1)


def gradients(result: torch.Tensor, weight: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad((result * weight).sum(), inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_are_those_of_the_whole_logits(chunks, variant, bias):
    hidden, head, target, weight = make_case(bias=bias)
    inputs = [hidden, *head.parameters()]
    expected = plain(hidden, head, target, **VARIANTS[variant])
    found = log_probabilities(hidden, head, target, **VARIANTS[variant])

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients(found, weight, *inputs), gradients(expected, weight, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_the_derivatives_of_the_values(chunks, variant):
    """Against finite differences, so that a mistake shared with the formula above would show."""
    hidden, head, target, weight = make_case(bias=True)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return (log_probabilities(values, head, target, **VARIANTS[variant]).double() * weight).sum()

    (gradient,) = torch.autograd.grad(loss(hidden), [hidden])
    direction = torch.randn_like(hidden)
    step = 1e-3
    with torch.no_grad():
        slope = (loss(hidden + step * direction) - loss(hidden - step * direction)) / (2 * step)

    torch.testing.assert_close((gradient.double() * direction).sum(), slope, rtol=1e-3, atol=1e-3)


def test_bfloat16_is_right_within_its_precision(chunks):
    hidden, head, target, weight = make_case(bias=True, dtype=torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, *head.parameters())]
    logits = nn.functional.linear(*exact)
    expected = logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    found = log_probabilities(hidden, head, target)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    pairs = zip(gradients(found, weight, hidden, *head.parameters()), gradients(expected, weight, *exact), strict=True)
    for one, other in pairs:
        assert (one.float() - other).norm() <= 0.02 * other.norm()


def test_autocast_computes_the_products_in_its_type_and_keeps_the_sums_in_float32(chunks):
    hidden, head, target, weight = make_case(bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(hidden, head, target)
        found = log_probabilities(hidden, head, target)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    inputs = [hidden, head.weight]
    for one, other in zip(gradients(found, weight, *inputs), gradients(expected, weight, *inputs), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * other.norm()


def test_frozen_parts_get_no_gradient_and_cost_none(chunks):
    hidden, head, target, weight = make_case(bias=True)
    head.requires_grad_(False)
    (log_probabilities(hidden, head, target) * weight).sum().backward()

    assert all(parameter.grad is None for parameter in head.parameters())
    assert hidden.grad is not None


def test_a_head_tied_to_the_embedding_gets_the_gradients_of_both():
    torch.manual_seed(0)
    embedding, head = nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)
    head.weight = embedding.weight
    tokens, target = torch.randint(VOCABULARY, (PREDICTIONS,)), torch.randint(VOCABULARY, (PREDICTIONS,))
    found = torch.autograd.grad(log_probabilities(embedding(tokens), head, target).sum(), [embedding.weight])
    expected = torch.autograd.grad(plain(embedding(tokens), head, target).sum(), [embedding.weight])

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Doubled(nn.Linear):
    """A head that is not what its weight says, as quantized and adapted ones are."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_head_of_another_kind_is_called_not_guessed(variant):
    hidden, _, target, _ = make_case(bias=False)
    head = Doubled(HIDDEN, VOCABULARY)

    expected = plain(hidden, head, target, **VARIANTS[variant])
    torch.testing.assert_close(log_probabilities(hidden, head, target, **VARIANTS[variant]), expected)


def test_no_predictions_give_none():
    hidden, head, target, _ = make_case(bias=True)

    assert log_probabilities(hidden[:0], head, target[:0]).shape == (0,)
