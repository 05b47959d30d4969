"""How far a model's distributions of the next token are from a teacher's, without ever holding all of them.

Legend: M predictions, C those of a chunk, D hidden size, V vocabulary, K candidates, B bins of a distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.engine.losses import ROW_STEP, chunk_rows

if TYPE_CHECKING:
    from collections.abc import Callable


class Readout(NamedTuple):
    """Hidden states that predict, ``[M, D]``, and how logits follow from them: through *head*, scaled, then capped."""

    hidden: Tensor
    head: nn.Module
    cap: float
    scale: float

    def of(self, hidden_CD: Tensor) -> Tensor:
        """Return ``[C, V]`` float32, the logits of *hidden_CD*."""
        logits_CV: Tensor = self.head(hidden_CD).float()
        if self.scale != 1:
            logits_CV = logits_CV * self.scale
        return self.cap * torch.tanh(logits_CV / self.cap) if self.cap else logits_CV


def divergence(student_MB: Tensor, teacher_MB: Tensor, beta: float) -> Tensor:
    """Return ``[M]``: the generalised Jensen–Shannon divergence of log-probabilities (arXiv:2306.13649, equation 1).

    With *beta* 0 it is the forward KL divergence, which covers all that the teacher says; with 1 the reverse one, which
    seeks what it says most.
    """
    student, teacher = student_MB, teacher_MB
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    share = student.new_tensor(beta)
    mixture = torch.logaddexp(student + torch.log1p(-share), teacher + torch.log(share))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(one_MB: Tensor, other_MB: Tensor) -> Tensor:
    return (one_MB.exp() * (one_MB - other_MB)).sum(-1)


def with_tail(log_p_MK: Tensor) -> Tensor:
    """Return ``[M, K + 1]``: log-probabilities of candidates, and that of all other tokens together."""
    # what rounding leaves below 0 has no logarithm
    rest = torch.log1p(-log_p_MK.exp().sum(-1, keepdim=True).clamp_max(1 - 1e-6))
    return torch.cat((log_p_MK, rest), -1)


def _in_chunks(readout: Readout, compute: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Return what *compute* makes of each chunk of hidden states; in the backward pass it is called once more."""
    vocabulary = 0

    def watch(hidden_CD: Tensor, at: slice) -> Tensor:
        nonlocal vocabulary
        logits_CV = readout.of(hidden_CD)
        vocabulary = logits_CV.shape[-1]
        return compute(logits_CV, at)

    # the first rows tell how large the vocabulary is
    parts: list[Tensor] = []
    start, rows = 0, ROW_STEP
    while not parts or start < len(readout.hidden):
        at = slice(start, start + rows)
        parts.append(checkpoint(watch, readout.hidden[at], at, use_reentrant=False))
        start, rows = at.stop, chunk_rows(readout.hidden.device.type, 4 * vocabulary)
    return torch.cat(parts)


def log_probabilities_of(readout: Readout, candidates_MK: Tensor) -> Tensor:
    """Return ``[M, K]`` float32: the log-probability of each candidate."""

    def compute(logits_CV: Tensor, at: slice) -> Tensor:
        return logits_CV.gather(1, candidates_MK[at]) - logits_CV.logsumexp(-1, keepdim=True)

    return _in_chunks(readout, compute)


def most_likely(readout: Readout, count: int) -> tuple[Tensor, Tensor]:
    """Return ``[M, K]`` ids and log-probabilities of the *count* likeliest tokens, without gradients."""
    ids, log_p = [], []
    with torch.no_grad():
        for hidden_CD in readout.hidden.split(ROW_STEP):
            logits_CV = readout.of(hidden_CD)
            found = logits_CV.topk(min(count, logits_CV.shape[-1]), -1)
            ids.append(found.indices)
            log_p.append(found.values - logits_CV.logsumexp(-1, keepdim=True))
    return torch.cat(ids), torch.cat(log_p)


class Reader(Protocol):
    """A model that shows what it predicts from."""

    def readout(self, tokens: Tensor, depth: Tensor, reach: Tensor, source: Tensor, width: int) -> Readout:
        """Return the hidden states at *source*, and how logits follow from them."""


class Teacher:
    """A model that says how likely it finds every token, beside the one that trains."""

    def __init__(self, model: Reader, beta: float, temperature: float) -> None:
        """*beta* is that of :func:`divergence`; the logits of both are divided by *temperature*."""
        self.model, self.beta, self.temperature = model, beta, temperature

    def compare(self, student: Readout, target_M: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Return ``[M, 2]``: each prediction's divergence from the teacher, and the target's log-probability.

        *arguments* are those of the pack: tokens, depth, reach, source, width.
        """
        with torch.no_grad():
            teacher = self.model.readout(**arguments)

        def compute(logits_CV: Tensor, at: slice) -> Tensor:
            with torch.no_grad():
                theirs_CV = teacher.of(teacher.hidden[at])
            # either may be filled up with rows that are no token
            shared = min(logits_CV.shape[-1], theirs_CV.shape[-1])
            own_CV = (logits_CV[:, :shared] / self.temperature).log_softmax(-1)
            theirs_CV = (theirs_CV[:, :shared] / self.temperature).log_softmax(-1)
            apart_C = divergence(own_CV, theirs_CV, self.beta)
            log_p_C = logits_CV.gather(1, target_M[at, None]).squeeze(1) - logits_CV.logsumexp(-1)
            return torch.stack((apart_C, log_p_C), 1)

        return _in_chunks(student, compute)
