"""Log-probabilities of chosen tokens, without ever holding the logits of all positions.

Everything goes chunk by chunk: one matrix product makes a chunk's logits in the head's own type, then the sums over
the vocabulary are taken in float32 a few rows at a time, and the gradient by the logits takes the logits' place.  So
memory is that of one chunk, and on the CPU those rows stay in the cache from the first pass over them to the last.

Legend: M predictions, C those of a chunk, B those of a block of rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.engine.penalties import NO_PENALTIES, Penalties

if TYPE_CHECKING:
    from collections.abc import Iterator

# bytes of a chunk's logits: enough rows that the matrix products run at full speed.  On a GPU each operation costs the
# same microseconds however small it is, and a product fills the machine from some hundred rows on: hence more
CHUNK_BYTES = 32 * 2**20
ACCELERATOR_CHUNK_BYTES = 128 * 2**20
# bytes of the float32 rows that a CPU works on at once: what its caches hold.  Elsewhere a block is a whole chunk
BLOCK_BYTES = 2 * 2**20
# chunks are filled up to a multiple of so many rows: each new shape of a product makes the CPU's library keep a kernel
ROW_STEP = 32


class LogLikelihood(NamedTuple):
    """What :func:`weighted_log_likelihood` returns."""

    total: Tensor
    """The scalar to differentiate: the plain one and what penalties add to it."""

    terms: Tensor
    """``[3]`` without a gradient: the plain log-likelihood, what smoothing adds, what the z-loss adds."""


class _Head:
    """Logits of ``hidden @ weight.T + bias``, scaled and then capped, in memory that each chunk uses again."""

    def __init__(self, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, cap: float, scale: float) -> None:
        self.hidden, self.weight, self.bias, self.cap, self.scale = hidden_MD, weight_VD, bias_V, cap, scale
        vocabulary = len(weight_VD)
        self.rows, self.block_rows = _rows_at_once(
            weight_VD.device.type, vocabulary, weight_VD.element_size(), len(hidden_MD)
        )
        self._logits = weight_VD.new_empty((self.rows, vocabulary))
        self._block = None
        if weight_VD.dtype != torch.float32:
            self._block = weight_VD.new_empty((self.block_rows, vocabulary), dtype=torch.float32)

    def chunks(self) -> Iterator[_Chunk]:
        """Yield the predictions in chunks, each with the head's own logits."""
        for start in range(0, len(self.hidden), self.rows):
            hidden_CD = self.hidden[start : start + self.rows].to(self.weight.dtype)
            count = len(hidden_CD)
            hidden_CD = nn.functional.pad(hidden_CD, (0, 0, 0, _filled(count) - count))
            logits_CV = self._logits[: len(hidden_CD)]
            if self.bias is None:
                torch.mm(hidden_CD, self.weight.T, out=logits_CV)
            else:
                torch.addmm(self.bias, hidden_CD, self.weight.T, out=logits_CV)
            logits_CV[count:] = 0  # filling: as part of a gradient it must be nothing
            yield _Chunk(slice(start, start + count), hidden_CD, logits_CV)

    def blocks(self, chunk: _Chunk) -> Iterator[_Block]:
        """Yield the rows of *chunk* in blocks of float32, scaled and capped."""
        for start in range(chunk.at.start, chunk.at.stop, self.block_rows):
            at = slice(start, min(start + self.block_rows, chunk.at.stop))
            own_BV = chunk.logits[at.start - chunk.at.start : at.stop - chunk.at.start]
            logits_BV = own_BV if self._block is None else self._block[: len(own_BV)].copy_(own_BV)
            if self.scale != 1:
                logits_BV.mul_(self.scale)
            slope_BV = None
            if self.cap:
                logits_BV.div_(self.cap).tanh_()
                slope_BV = 1 - logits_BV.square()
                logits_BV.mul_(self.cap)
            yield _Block(at, own_BV, logits_BV, slope_BV)


class _Chunk(NamedTuple):
    """Predictions that share a matrix product, filled up with rows of zero."""

    at: slice
    hidden: Tensor
    logits: Tensor


class _Block(NamedTuple):
    """Predictions that are worked on at once."""

    at: slice
    own: Tensor
    logits: Tensor
    slope: Tensor | None

    def sums(self, target_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the target's log-probability, logsumexp and ``sum(exp(l - max))``, ``[B, 1]`` each.

        Each logit l becomes ``exp(l - max)``.
        """
        logits_BV = self.logits
        chosen_B1 = logits_BV.gather(1, target_M[self.at, None])
        most_B1 = logits_BV.amax(1, keepdim=True)
        total_B1 = logits_BV.sub_(most_B1).exp_().sum(1, keepdim=True)
        log_total_B1 = total_B1.log().add_(most_B1)
        return chosen_B1.sub_(log_total_B1), log_total_B1, total_B1

    def keep(self) -> None:
        """Put what is now in ``logits``, the gradient by them over their scale, in place of the head's own."""
        if self.slope is not None:
            self.logits.mul_(self.slope)
        if self.own is not self.logits:
            self.own.copy_(self.logits)


def _filled(rows: int) -> int:
    return rows + -rows % ROW_STEP


def chunk_rows(device: str, row_bytes: int) -> int:
    """Return how many predictions a chunk has on *device*, whose logits take *row_bytes* each."""
    chunk_bytes = CHUNK_BYTES if device == "cpu" else ACCELERATOR_CHUNK_BYTES
    return _filled(max(1, chunk_bytes // row_bytes))


def _rows_at_once(device: str, vocabulary: int, number_bytes: int, predictions: int) -> tuple[int, int]:
    """Return the rows of a chunk and those of a block."""
    rows = chunk_rows(device, number_bytes * vocabulary)
    rows = min(rows, _filled(predictions) or rows)
    return rows, min(rows, max(1, BLOCK_BYTES // (4 * vocabulary))) if device == "cpu" else rows


def chunk_memory(device: str, vocabulary: int, number_bytes: int, predictions: int) -> int:
    """Return the bytes that chunks and blocks of logits take on *device*, in numbers of *number_bytes* each."""
    rows, block_rows = _rows_at_once(device, vocabulary, number_bytes, predictions)
    return vocabulary * (rows * number_bytes + (block_rows * 4 if number_bytes < 4 else 0))


class _GradientSums:
    """The gradients of hidden states, head weight and bias, as far as they are needed, gathered chunk by chunk."""

    def __init__(self, hidden_MD: Tensor, weight_VD: Tensor, needed: tuple[bool, ...]) -> None:
        self.dtype = weight_VD.dtype  # and not the tensors: these sums outlive the forward pass
        self.by_hidden = torch.empty_like(hidden_MD) if needed[0] else None
        # of one chunk it is that chunk's product; float32 is for the sum over several
        self.by_weight = torch.zeros_like(weight_VD) if needed[1] and not len(hidden_MD) else None
        self.needs_weight = needed[1]
        self.by_bias = torch.zeros_like(weight_VD[:, 0], dtype=torch.float32) if needed[2] else None

    def add(self, chunk: _Chunk, weight_VD: Tensor) -> None:
        """Add what follows from *chunk*, whose logits have become the gradient by them."""
        gradient_CV = chunk.logits
        if self.by_hidden is not None:
            self.by_hidden[chunk.at] = (gradient_CV @ weight_VD)[: chunk.at.stop - chunk.at.start]
        if self.needs_weight and self.by_weight is None:
            self.by_weight = gradient_CV.T @ chunk.hidden
        elif self.by_weight is not None and self.dtype == torch.float32:
            self.by_weight.addmm_(gradient_CV.T, chunk.hidden)
        elif self.by_weight is not None:
            self.by_weight = self.by_weight.float().add_(gradient_CV.T @ chunk.hidden)
        if self.by_bias is not None:
            self.by_bias += gradient_CV.sum(0, dtype=torch.float32)

    def scaled(self, factor: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the three, times *factor*, in the types of what they belong to; they are gone from here."""
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
        out_M1 = torch.empty((len(hidden_MD), 1), dtype=torch.float32, device=hidden_MD.device)
        log_total_M1 = torch.empty_like(out_M1)
        head = _Head(hidden_MD, weight_VD, bias_V, cap, scale)
        for chunk in head.chunks():
            for block in head.blocks(chunk):
                out_M1[block.at], log_total_M1[block.at], _ = block.sums(target_M)
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, target_M, log_total_M1)
        ctx.cap, ctx.scale = cap, scale
        return out_M1.squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, weight_VD, bias_V, target_M, log_total_M1 = ctx.saved_tensors
        factor_M1 = gradients[0][:, None] * ctx.scale
        sums = _GradientSums(hidden_MD, weight_VD, ctx.needs_input_grad)
        head = _Head(hidden_MD, weight_VD, bias_V, ctx.cap, ctx.scale)
        for chunk in head.chunks():
            for block in head.blocks(chunk):
                # d log p[target] / d logits = onehot - softmax
                block.logits.sub_(log_total_M1[block.at]).exp_().mul_(-factor_M1[block.at])
                block.logits.scatter_add_(1, target_M[block.at, None], factor_M1[block.at])
                block.keep()
            sums.add(chunk, weight_VD)
        return *sums.scaled(None), None, None, None


class _WeightedLogLikelihood(torch.autograd.Function):
    """``(coefficient * log_softmax(f(hidden @ weight.T))[target]).sum()`` with its gradients made in the same pass.

    Since the derivative by each log-probability is known beforehand, a chunk's gradient follows from its logits while
    they are there: three matrix products in all, where recomputing takes four, and nothing of size V is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, given: _Given
    ) -> tuple[Tensor, Tensor]:
        smoothing, z = given.penalties.label_smoothing, given.penalties.z_loss
        coefficient_M1, target_M = given.coefficient.float()[:, None], given.target
        log_p_M1, mean_M1, log_total_M1 = torch.zeros(
            (3, len(hidden_MD), 1), dtype=torch.float32, device=hidden_MD.device
        )
        needed = ctx.needs_input_grad if given.differentiate else (False, False, False)
        sums = ctx.sums = _GradientSums(hidden_MD, weight_VD, needed)
        head = _Head(hidden_MD, weight_VD, bias_V, given.cap, given.scale)
        for chunk in head.chunks():
            for block in head.blocks(chunk):
                at = block.at
                if smoothing:
                    mean_M1[at] = block.logits.mean(1, keepdim=True)
                log_p_M1[at], log_total_M1[at], total_B1 = block.sums(target_M)
                if not given.differentiate:
                    continue
                # d / d logits = (1 - s) onehot + s / V - softmax * (1 + 2 z logsumexp), times the coefficient
                factor_B1 = coefficient_M1[at] * given.scale
                towards_B1 = factor_B1 * (1 + 2 * z * log_total_M1[at]) if z else factor_B1
                block.logits.mul_(-towards_B1 / total_B1)
                if smoothing:
                    block.logits.add_(factor_B1 * (smoothing / len(weight_VD)))
                block.logits.scatter_add_(1, target_M[at, None], factor_B1 * (1 - smoothing))
                block.keep()
            if given.differentiate:
                sums.add(chunk, weight_VD)
        terms = _terms(coefficient_M1, log_p_M1, mean_M1 - log_total_M1, log_total_M1, given.penalties)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, None
        if sums is None:  # they were scaled in place: a second pass must fail, not be wrong
            raise RuntimeError("gradients made in the forward pass are given once, not a second time")
        return *sums.scaled(gradients[0]), None


@dataclass(frozen=True)
class _Given:
    """What a loss is told beside the tensors that may need gradients."""

    target: Tensor
    coefficient: Tensor
    penalties: Penalties
    cap: float
    scale: float
    differentiate: bool


def _terms(coefficient: Tensor, log_p: Tensor, mean_log_p: Tensor, log_total: Tensor, penalties: Penalties) -> Tensor:
    """Return the three sums of :class:`LogLikelihood`; the last three tensors are by prediction."""
    plain = (coefficient * log_p).sum()
    smoothing = z_loss = torch.zeros_like(plain)
    if penalties.label_smoothing:
        smoothing = penalties.label_smoothing * (coefficient * (mean_log_p - log_p)).sum()
    if penalties.z_loss:
        z_loss = -penalties.z_loss * (coefficient * log_total.square()).sum()
    return torch.stack((plain, smoothing, z_loss))


def _through_module(
    hidden_MD: Tensor, head: nn.Module, target_M: Tensor, cap: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each target's log-probability, the mean one over the vocabulary, and logsumexp, ``[M]`` each.

    *head* may be any module: it is called on one chunk at a time, and once more in the backward pass.
    """
    vocabulary = 0

    def compute(hidden_CD: Tensor, target_C: Tensor) -> Tensor:
        nonlocal vocabulary
        logits_CV = head(hidden_CD).float()
        vocabulary = logits_CV.shape[-1]
        if scale != 1:
            logits_CV = logits_CV * scale
        if cap:
            logits_CV = cap * torch.tanh(logits_CV / cap)
        log_total_C = logits_CV.logsumexp(-1)
        chosen_C = logits_CV.gather(1, target_C[:, None]).squeeze(1)
        return torch.stack((chosen_C - log_total_C, logits_CV.mean(-1) - log_total_C, log_total_C))

    # the first rows tell how large the vocabulary is
    parts: list[Tensor] = []
    start, rows = 0, ROW_STEP
    while not parts or start < len(hidden_MD):
        at = slice(start, start + rows)
        parts.append(checkpoint(compute, hidden_MD[at], target_M[at], use_reentrant=False))
        start, rows = at.stop, chunk_rows(hidden_MD.device.type, 4 * vocabulary)
    log_p_M, mean_M, log_total_M = torch.cat(parts, 1)
    return log_p_M, mean_M, log_total_M


def log_probabilities(
    hidden_MD: Tensor, head: nn.Module, target_M: Tensor, *, cap: float = 0.0, scale: float = 1.0
) -> Tensor:
    """Return ``[M]`` float32 log-probabilities of *target_M* under *head*; logits are scaled, then soft-capped.

    Under autocast the matrix products run in its type, as a plain forward pass would.
    """
    if type(head) is not nn.Linear:
        return _through_module(hidden_MD, head, target_M, cap, scale)[0]
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
    penalties: Penalties = NO_PENALTIES,
    cap: float = 0.0,
    scale: float = 1.0,
) -> LogLikelihood:
    """Return the scalar ``(coefficient_M * log_probabilities(…)).sum()`` with its *penalties*.

    *coefficient_M* takes no gradient.  The gradients are made on the way, so they can be asked for once.
    """
    if type(head) is not nn.Linear:
        each = _through_module(hidden_MD, head, target_M, cap, scale)
        terms = _terms(coefficient_M, *each, penalties)
        return LogLikelihood(terms.sum(), terms.detach())
    weight_VD, bias_V = _head_tensors(head, hidden_MD.device.type)
    given = _Given(target_M, coefficient_M, penalties, cap, scale, torch.is_grad_enabled())
    with torch.autocast(hidden_MD.device.type, enabled=False):
        found = _WeightedLogLikelihood.apply(hidden_MD, weight_VD, bias_V, given)  # type: ignore[no-untyped-call]
    return LogLikelihood(*found)


def _head_tensors(head: nn.Linear, device: str) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias in the type that a forward pass of *head* would compute in."""
    weight_VD: Tensor = head.weight
    bias_V: Tensor | None = head.bias
    if torch.is_autocast_enabled(device):
        weight_VD = weight_VD.to(torch.get_autocast_dtype(device))
        bias_V = None if bias_V is None else bias_V.to(weight_VD.dtype)
    return weight_VD, bias_V
