"""The next token of many replies at once, each by its own settings.

Legend: N replies, M of them that are sampled (or penalised), V vocabulary.  The order is transformers': penalties,
constraint, temperature, top-k, top-p, min-p, typical.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunesmith.generation.reply import Choice, Reply
from tunesmith.generation.requests import Alternative, TokenLogProbability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunesmith.generation.settings import Generation


_HEAD = 1024


class Sampler:
    """Chooses for a fixed list of replies; another list needs another sampler."""

    def __init__(self, replies: Sequence[Reply], vocabulary: int, device: torch.device) -> None:
        """Take the replies as far as they are written; *vocabulary* is the width of the logits."""
        self.replies = replies
        self._device = device
        self._told = [row for row, reply in enumerate(replies) if reply.wants_log_probability]
        self._held = [row for row, reply in enumerate(replies) if reply.walk is not None]
        # a token's place in the order decides which it is that a chance draws: who shares the batch must not change it
        self._whole = self._rows(lambda s: s.temperature > 0 and not _cuts(s))
        self._heat = self._column(self._whole, lambda s: s.temperature)
        self._cut = self._rows(lambda s: s.temperature > 0 and _cuts(s))
        self._cut_heat = self._column(self._cut, lambda s: s.temperature)
        self._top_k = self._column(self._cut, lambda s: s.top_k or vocabulary)
        self._top_p = self._column(self._cut, lambda s: s.top_p)
        self._min_p = self._column(self._cut, lambda s: s.min_p)
        self._typical_p = self._column(self._cut, lambda s: s.typical_p)
        self._needs_all = any(s.typical_p < 1 or s.top_k > _HEAD for s in self._settings(self._cut))
        self._repeating = self._rows(lambda s: s.repetition_penalty != 1)
        self._repetition = self._column(self._repeating, lambda s: s.repetition_penalty)
        self._counted = self._rows(lambda s: s.presence_penalty != 0 or s.frequency_penalty != 0)
        self._presence = self._column(self._counted, lambda s: s.presence_penalty)
        self._frequency = self._column(self._counted, lambda s: s.frequency_penalty)
        self._seen_MV = self._counts(self._repeating, vocabulary, prompt=True).bool()
        self._counts_MV = self._counts(self._counted, vocabulary, prompt=False)

    def choose(self, logits_NV: Tensor) -> list[Choice | None]:
        """Return each reply's next token; None for those that are finished.  *logits_NV* is changed."""
        told = self._tell(logits_NV)
        tokens_N = self._tokens(logits_NV)
        if self._repeating:
            self._seen_MV[range(len(self._repeating)), tokens_N[self._repeating]] = True
        if self._counted:
            self._counts_MV[range(len(self._counted)), tokens_N[self._counted]] += 1
        chosen = tokens_N.tolist()
        return [
            None if reply.finish_reason is not None else Choice(token, told[row](token) if row in told else None)
            for row, (reply, token) in enumerate(zip(self.replies, chosen, strict=True))
        ]

    def _tokens(self, logits_NV: Tensor) -> Tensor:
        if self._repeating:
            found_MV = logits_NV[self._repeating]
            logits_NV[self._repeating] = repeat_less(found_MV, self._seen_MV, self._repetition)
        if self._counted:
            taken_MV = self._frequency * self._counts_MV + self._presence * (self._counts_MV > 0)
            logits_NV[self._counted] -= taken_MV
        for row in self._held:
            allowed = self.replies[row].allowed() if self.replies[row].finish_reason is None else None
            if allowed is not None:
                allowed_V = torch.zeros(logits_NV.shape[1], dtype=torch.bool)
                allowed_V[: len(allowed)] = torch.from_numpy(allowed)
                logits_NV[row].masked_fill_(~allowed_V.to(self._device), -torch.inf)
        tokens_N = logits_NV.argmax(-1)
        if self._whole:
            p_MV = (logits_NV[self._whole] / self._heat).softmax(-1)
            tokens_N[self._whole] = draw(p_MV, self._chance(self._whole))[:, 0]
        if self._cut:
            tokens_N[self._cut] = self._sample(logits_NV[self._cut] / self._cut_heat)
        return tokens_N

    def _sample(self, logits_MV: Tensor) -> Tensor:
        """Return ``[M]`` tokens of what the settings leave, likeliest first."""
        width = logits_MV.shape[1]
        total_M1 = logits_MV.logsumexp(-1, keepdim=True)
        # to order a large vocabulary takes longer than to compute its logits: the head is nearly always enough
        for count in (width,) if width <= _HEAD or self._needs_all else (_HEAD, width):
            ordered_MV, order_MV = logits_MV.topk(count)
            kept_MV = keep(ordered_MV, total_M1, self._top_k, self._top_p, self._min_p, self._typical_p)
            if not kept_MV[:, -1].any():
                break  # where one is not kept, none behind it is
        place_M1 = draw(ordered_MV.masked_fill(~kept_MV, -torch.inf).softmax(-1), self._chance(self._cut))
        return order_MV.gather(1, place_M1)[:, 0]

    def _chance(self, rows: Sequence[int]) -> Tensor:
        """Return ``[M, 1]``: each reply's own next random number."""
        chance = [self.replies[row].chance() for row in rows]
        return torch.tensor(chance, dtype=torch.float64, device=self._device)[:, None]

    def _tell(self, logits_NV: Tensor) -> dict[int, Callable[[int], TokenLogProbability]]:
        """Return, for the rows that want it, what tells a token's log-probability before anything is changed."""
        if not self._told:
            return {}
        probable_MV = logits_NV[self._told].log_softmax(-1)
        most = max(self.replies[row].settings.log_probabilities or 0 for row in self._told)
        values, ids = (each.tolist() for each in probable_MV.topk(min(most, probable_MV.shape[1])))
        told: dict[int, Callable[[int], TokenLogProbability]] = {}
        for place, row in enumerate(self._told):
            wanted = self.replies[row].settings.log_probabilities or 0
            pairs = list(zip(ids[place][:wanted], values[place][:wanted], strict=True))
            told[row] = _teller(probable_MV[place], pairs)
        return told

    def _settings(self, rows: Sequence[int]) -> list[Generation]:
        return [self.replies[row].settings for row in rows]

    def _rows(self, wanted: Callable[[Generation], bool]) -> list[int]:
        return [row for row, reply in enumerate(self.replies) if wanted(reply.settings)]

    def _column(self, rows: Sequence[int], value: Callable[[Generation], float]) -> Tensor:
        values = [value(settings) for settings in self._settings(rows)]
        return torch.tensor(values, device=self._device)[:, None] if values else torch.empty(0)

    def _counts(self, rows: Sequence[int], vocabulary: int, *, prompt: bool) -> Tensor:
        """Return ``[M, V]`` float32: how often each token is in the replies so far, with their prompts."""
        counts_MV = torch.zeros(len(rows), vocabulary)
        for place, row in enumerate(rows):
            reply = self.replies[row]
            tokens = [*(reply.prompt if prompt else ()), *reply.tokens]
            counts_MV[place] = torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=vocabulary)
        return counts_MV.to(self._device)


def _cuts(settings: Generation) -> bool:
    """Say whether some tokens may not be sampled at all."""
    return bool(settings.top_k or settings.top_p < 1 or settings.min_p or settings.typical_p < 1)


def _teller(probable_V: Tensor, pairs: Sequence[tuple[int, float]]) -> Callable[[int], TokenLogProbability]:
    alternatives = tuple(Alternative(token, value) for token, value in pairs)
    return lambda token: TokenLogProbability(token, float(probable_V[token]), alternatives)


def repeat_less(logits_MV: Tensor, seen_MV: Tensor, penalty_M1: Tensor) -> Tensor:
    """Return the logits with those of tokens seen divided by the penalty, or multiplied where below 0 (CTRL)."""
    less_MV = torch.where(logits_MV < 0, logits_MV * penalty_M1, logits_MV / penalty_M1)
    return torch.where(seen_MV, less_MV, logits_MV)


def keep(
    ordered_MV: Tensor, total_M1: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, typical_p: Tensor
) -> Tensor:
    """Return ``[M, V]``: which tokens may be sampled, of logits in falling order; the limits are ``[M, 1]``.

    *ordered_MV* may be the first of them only, but for *typical_p*; *total_M1* is the log of the sum of all.
    """
    rank_V = torch.arange(ordered_MV.shape[1], device=ordered_MV.device)
    kept_MV = rank_V < top_k
    first_MV = ordered_MV.masked_fill(~kept_MV, -torch.inf)
    whole_M1 = torch.where(top_k > ordered_MV.shape[1], total_M1, first_MV.logsumexp(-1, keepdim=True))
    p_MV = (first_MV - whole_M1).exp()
    kept_MV &= p_MV.cumsum(-1) - p_MV < top_p
    kept_MV &= p_MV >= min_p * p_MV[:, :1]
    if (typical_p < 1).any():
        log_p_MV = ordered_MV.masked_fill(~kept_MV, -torch.inf).log_softmax(-1)
        surprise_M1 = -(log_p_MV * log_p_MV.exp()).nansum(-1, keepdim=True)
        near_MV, order_MV = (-log_p_MV - surprise_M1).abs().sort()
        reached_MV = log_p_MV.gather(1, order_MV).exp().cumsum(-1)
        last_M1 = (reached_MV < typical_p).sum(-1, keepdim=True).clamp_max(near_MV.shape[1] - 1)
        typical_MV = torch.zeros_like(kept_MV).scatter(1, order_MV, near_MV <= near_MV.gather(1, last_M1))
        kept_MV &= typical_MV | (typical_p >= 1)
    return kept_MV


def draw(p_MV: Tensor, chance_M1: Tensor) -> Tensor:
    """Return ``[M, 1]``: the place at which the sum of *p_MV* passes the share *chance_M1* of it."""
    sums_MV = p_MV.double().cumsum(-1)
    return torch.searchsorted(sums_MV, chance_M1 * sums_MV[:, -1:], right=True).clamp_max(p_MV.shape[1] - 1)
