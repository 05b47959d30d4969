"""Log-probabilities of chosen tokens, without ever holding the logits of all positions.

Legend: M predictions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# bytes of float32 logits that one chunk may take; big enough that the matrix product runs at full speed
CHUNK_BYTES = 16 * 2**20


class _GradientSums:
    """The gradients of hidden states, head weight and bias, as far as they are needed, gathered chunk by chunk."""

    def __init__(self, hidden_MD: Tensor, weight_VD: Tensor, needed: tuple[bool, ...]) -> None:
        self.dtype = weight_VD.dtype  # and not the tensors: these sums outlive the forward pass
        self.by_hidden = torch.empty_like(hidden_MD) if needed[0] else None
        self.by_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needed[1] else None
        self.by_bias = torch.zeros_like(weight_VD[:, 0], dtype=torch.float32) if needed[2] else None

    def add(self, at: slice, gradient_CV: Tensor, hidden_MD: Tensor, weight_VD: Tensor) -> None:
        """Add what follows from the gradient by the logits of the predictions *at*."""
        if self.by_hidden is not None:
            self.by_hidden[at] = gradient_CV @ weight_VD
        if self.by_weight is not None:
            self.by_weight += gradient_CV.T @ hidden_MD[at].to(gradient_CV.dtype)
        if self.by_bias is not None:
            self.by_bias += gradient_CV.sum(0)

    def scaled(self, factor: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the three, times *factor*, in the types of what they belong to."""
        sums = [self.by_hidden, self.by_weight, self.by_bias]
        if factor is not None:
            sums = [None if total is None else total.mul_(factor) for total in sums]
        hidden, weight, bias = sums
        return hidden, None if weight is None else weight.to(self.dtype), None if bias is None else bias.to(self.dtype)


class _ChunkedLogProbabilities(torch.autograd.Function):
    """``log_softmax(f(hidden @ weight.T))[target]``, chunk by chunk; the backward pass computes each chunk again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_M: Tensor,
        cap: float,
        scale: float,
    ) -> Tensor:
        rows = _rows(weight_VD)
        out_M = torch.empty(len(hidden_MD), dtype=torch.float32, device=hidden_MD.device)
        total_M = torch.empty_like(out_M)
        for start in range(0, len(hidden_MD), rows):
            at = slice(start, start + rows)
            logits_CV = _logits(hidden_MD[at], weight_VD, bias_V, cap, scale)
            total_M[at] = torch.logsumexp(logits_CV, -1)
            out_M[at] = logits_CV.gather(1, target_M[at, None]).squeeze(1) - total_M[at]
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, target_M, total_M)
        ctx.cap, ctx.scale = cap, scale
        return out_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_M,) = gradients
        hidden_MD, weight_VD, bias_V, target_M, total_M = ctx.saved_tensors
        rows = _rows(weight_VD)
        sums = _GradientSums(hidden_MD, weight_VD, ctx.needs_input_grad)
        for start in range(0, len(hidden_MD), rows):
            at = slice(start, start + rows)
            capped_CV = _logits(hidden_MD[at], weight_VD, bias_V, ctx.cap, ctx.scale)
            # d log p[target] / d logits = onehot - softmax
            gradient_CV = (capped_CV - total_M[at, None]).exp_().neg_()
            gradient_CV.scatter_add_(1, target_M[at, None], gradient_CV.new_ones(()).expand(len(gradient_CV), 1))
            gradient_CV.mul_(gradient_M[at, None])
            gradient_CV = _through(gradient_CV, capped_CV, ctx.cap, ctx.scale).to(weight_VD.dtype)
            sums.add(at, gradient_CV, hidden_MD, weight_VD)
        return *sums.scaled(None), None, None, None


class _WeightedLogLikelihood(torch.autograd.Function):
    """``(coefficient * log_softmax(f(hidden @ weight.T))[target]).sum()`` with its gradients made in the same pass.

    Since the derivative by each log-probability is known beforehand, a chunk's gradient follows from its logits while
    they are there: three matrix products in all, where recomputing takes four, and nothing of size V is kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, given: _Given) -> Tensor:
        sums = ctx.sums = _GradientSums(hidden_MD, weight_VD, ctx.needs_input_grad)
        rows = _rows(weight_VD)
        total = torch.zeros((), dtype=torch.float32, device=hidden_MD.device)
        for start in range(0, len(hidden_MD), rows):
            at = slice(start, start + rows)
            target_C1, coefficient_C1 = given.target[at, None], given.coefficient[at, None]
            capped_CV = _logits(hidden_MD[at], weight_VD, bias_V, given.cap, given.scale)
            log_p_CV = torch.log_softmax(capped_CV, -1)
            total += (log_p_CV.gather(1, target_C1) * coefficient_C1).sum()
            if not any(ctx.needs_input_grad):
                continue
            gradient_CV = log_p_CV.exp_().mul_(-coefficient_C1)
            gradient_CV.scatter_add_(1, target_C1, coefficient_C1)
            gradient_CV = _through(gradient_CV, capped_CV, given.cap, given.scale).to(weight_VD.dtype)
            sums.add(at, gradient_CV, hidden_MD, weight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.sums.scaled(gradients[0]), None


@dataclass(frozen=True)
class _Given:
    """What a loss is told beside the tensors that may need gradients."""

    target: Tensor
    coefficient: Tensor
    cap: float
    scale: float


def _through(gradient_CV: Tensor, capped_CV: Tensor, cap: float, scale: float) -> Tensor:
    """Return the gradient by the head's own logits, given that by the capped and scaled ones."""
    if cap:
        gradient_CV.mul_(1 - (capped_CV / cap).square_())
    return gradient_CV.mul_(scale) if scale != 1 else gradient_CV


def _rows(weight_VD: Tensor) -> int:
    return max(16, CHUNK_BYTES // (4 * len(weight_VD)))


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, cap: float, scale: float) -> Tensor:
    logits_CV = nn.functional.linear(hidden_CD.to(weight_VD.dtype), weight_VD, bias_V).float()
    if scale != 1:
        logits_CV = logits_CV * scale
    return cap * torch.tanh(logits_CV / cap) if cap else logits_CV


def log_probabilities(
    hidden_MD: Tensor, head: nn.Module, target_M: Tensor, *, cap: float = 0.0, scale: float = 1.0
) -> Tensor:
    """Return ``[M]`` float32 log-probabilities of *target_M* under *head*; logits are scaled, then soft-capped.

    Under autocast the matrix products run in its type, as a plain forward pass would.
    """
    if type(head) is not nn.Linear:
        logits_MV = head(hidden_MD).float() * scale
        logits_MV = cap * torch.tanh(logits_MV / cap) if cap else logits_MV
        return logits_MV.log_softmax(-1).gather(1, target_M[:, None]).squeeze(1)
    weight_VD, bias_V = _head_tensors(head, hidden_MD.device.type)
    with torch.autocast(hidden_MD.device.type, enabled=False):
        result: Tensor = _ChunkedLogProbabilities.apply(  # type: ignore[no-untyped-call]
            hidden_MD, weight_VD, bias_V, target_M, cap, scale
        )
    return result


def weighted_log_likelihood(
    hidden_MD: Tensor,
    head: nn.Module,
    target_M: Tensor,
    coefficient_M: Tensor,
    *,
    cap: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Return the scalar ``(coefficient_M * log_probabilities(…)).sum()``; *coefficient_M* takes no gradient."""
    if type(head) is not nn.Linear:
        return (coefficient_M * log_probabilities(hidden_MD, head, target_M, cap=cap, scale=scale)).sum()
    weight_VD, bias_V = _head_tensors(head, hidden_MD.device.type)
    with torch.autocast(hidden_MD.device.type, enabled=False):
        total: Tensor = _WeightedLogLikelihood.apply(  # type: ignore[no-untyped-call]
            hidden_MD, weight_VD, bias_V, _Given(target_M, coefficient_M, cap, scale)
        )
    return total


def _head_tensors(head: nn.Linear, device: str) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias in the type that a forward pass of *head* would compute in."""
    weight_VD: Tensor = head.weight
    bias_V: Tensor | None = head.bias
    if torch.is_autocast_enabled(device):
        weight_VD = weight_VD.to(torch.get_autocast_dtype(device))
        bias_V = None if bias_V is None else bias_V.to(weight_VD.dtype)
    return weight_VD, bias_V
