"""Rollouts: several answers to each prompt, sampled together, with the log-probability of every token.

A prompt is computed once for all its answers, answers that have ended leave the batch, and each answer has random
numbers of its own: what is written depends on the seed and the weights, not on how many are written at once.

Legend: P prompts, R rows (answers being written), T tokens of the longest answer, V vocabulary.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.core.errors import UserError
from tunesmith.generation.sampling import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tunesmith.generation.constraints import Walk
    from tunesmith.generation.sampling import Sampling

# a batch is made smaller when so large a share of it has ended: its cache is copied then
_ENDED = 0.25


def check_model(model: Any) -> None:
    """Raise :class:`UserError` for a transformers model that keeps no cache which answers could share."""
    if "past_key_values" not in signature(model.forward).parameters:
        kind = model.config.model_type
        raise UserError(
            f"stage: {kind} has no cache of keys and values, from which answers are sampled; use another model"
        )


@torch.no_grad()
def sample_groups(
    model: Any,
    prompts: Sequence[NDArray[np.int32]],
    count: int,
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    seed: Sequence[int],
    walks: Sequence[Walk] = (),
) -> list[list[Completion]]:
    """Return *count* answers of *model*, a transformers model in evaluation mode, to each of *prompts*, in order.

    *walks* hold them to a constraint: one for each answer, group after group; none where they are free.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]))
    chances = torch.rand(
        len(prompts) * count, sampling.max_new_tokens, generator=generator, dtype=torch.float64
    )  # a row for each answer, whatever batch it is in
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    at_once = max(1, sampling.batch_size // count)
    out: list[list[Completion]] = [[] for _ in prompts]
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        rows = [index * count + each for index in chosen for each in range(count)]
        batch = _Batch(model, [prompts[index] for index in chosen], count, sampling, stop_ids)
        written = batch.write(chances[torch.tensor(rows)], [walks[row] for row in rows] if walks else [])
        for at, index in enumerate(chosen):
            out[index] = written[at * count : (at + 1) * count]
    return out


class _Batch:
    """Answers that are written together."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[NDArray[np.int32]],
        count: int,
        sampling: Sampling,
        stop_ids: Sequence[int],
    ) -> None:
        self.model, self.count, self.sampling = model, count, sampling
        self.device = model.device
        # models differ in what they must be told: some count positions themselves
        self.takes = frozenset(signature(model.forward).parameters)
        self.stops = torch.tensor(list(stop_ids), dtype=torch.long, device=self.device)
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        tokens = np.full((len(prompts), width), prompts[0][0], np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = prompt
        self.prompts = torch.from_numpy(tokens).to(self.device)
        self.lengths = torch.tensor(lengths, device=self.device)
        # without filling no mask is needed, and attention is faster
        self.filled = min(lengths) < width

    def write(self, chances_RT: Tensor, walks: list[Walk]) -> list[Completion]:
        """Return the answers, for each token of which there is a chance in [0, 1); *walks* hold them to a form."""
        rows, most = chances_RT.shape
        chances_RT = chances_RT.to(self.device)
        tokens_RT = torch.zeros(rows, most, dtype=torch.long, device=self.device)
        log_p_RT = torch.zeros(rows, most, device=self.device)
        length_R = torch.full((rows,), most, device=self.device)
        ended_R = torch.zeros(rows, dtype=torch.bool, device=self.device)
        alive = torch.arange(rows, device=self.device)
        logits_RV, cache = self._read_prompts()
        position_R = self.lengths.repeat_interleave(self.count)
        mask_RW = self._mask(most)
        width = self.prompts.shape[1]
        for at in range(most):
            allowed_RV = self._allowed(walks, alive.tolist(), logits_RV) if walks else None
            chosen_R, log_p_R = choose(logits_RV, chances_RT[alive, at], self.sampling, allowed_RV)
            tokens_RT[alive, at], log_p_RT[alive, at] = chosen_R, log_p_R
            if walks:
                self._advance(walks, alive.tolist(), chosen_R.tolist())
            now_R = torch.isin(chosen_R, self.stops) & ~ended_R[alive]
            length_R[alive[now_R]] = at + 1
            ended_R[alive] |= now_R
            going = (~ended_R[alive]).nonzero().squeeze(1)
            if not len(going) or at == most - 1:
                break
            if len(alive) - len(going) >= _ENDED * len(alive):
                alive, chosen_R, position_R, mask_RW = (x[going] for x in (alive, chosen_R, position_R, mask_RW))
                cache.batch_select_indices(going)
            out = self._run(
                input_ids=chosen_R[:, None],
                attention_mask=mask_RW[:, : width + at + 1] if self.filled else None,
                position_ids=position_R[:, None],
                past_key_values=cache,
            )
            logits_RV, cache, position_R = out.logits[:, -1].float(), out.past_key_values, position_R + 1
        tokens, log_p, lengths = tokens_RT.cpu().numpy(), log_p_RT.cpu().numpy(), length_R.tolist()
        return [
            Completion(tokens[row, :end].astype(np.int32), log_p[row, :end].copy(), done)
            for row, (end, done) in enumerate(zip(lengths, ended_R.tolist(), strict=True))
        ]

    def _run(self, **given: Any) -> Any:
        return self.model(**{name: value for name, value in given.items() if name in self.takes}, use_cache=True)

    def _read_prompts(self) -> tuple[Tensor, Any]:
        """Return the logits after each prompt ``[R, V]`` and the cache, both repeated for the prompt's answers."""
        width = self.prompts.shape[1]
        places = torch.arange(width, device=self.device)[None] - (width - self.lengths[:, None])
        out = self._run(
            input_ids=self.prompts,
            attention_mask=(places >= 0).long() if self.filled else None,
            position_ids=places.clamp(min=0),
            # by index: of the slice that 1 would take, of rows that do not touch, a CPU copies the head for each row
            logits_to_keep=torch.tensor([width - 1], device=self.device),
        )
        cache = out.past_key_values
        if self.count > 1:
            cache.batch_repeat_interleave(self.count)
        return out.logits[:, -1].float().repeat_interleave(self.count, 0), cache

    def _allowed(self, walks: Sequence[Walk], rows: Sequence[int], logits_RV: Tensor) -> Tensor:
        """Return ``[R, V]``: what may follow in each of *rows*; the tokens that end an answer, where it is complete."""
        allowed_RV = np.zeros(tuple(logits_RV.shape), np.bool_)
        stops = self.stops.tolist()
        for at, row in enumerate(rows):
            mask = walks[row].allowed()[: allowed_RV.shape[1]]
            allowed_RV[at, : len(mask)] = mask
            allowed_RV[at, stops] = walks[row].finished
        return torch.from_numpy(allowed_RV).to(self.device)

    def _advance(self, walks: list[Walk], rows: Sequence[int], chosen: Sequence[int]) -> None:
        """Take each of *rows* on by the token *chosen* for it, unless that ended it, now or before."""
        stops = set(self.stops.tolist())
        for row, token in zip(rows, chosen, strict=True):
            if token not in stops:
                walks[row] = walks[row].advance(token)

    def _mask(self, most: int) -> Tensor:
        """Return ``[R, W + T]``: 1 where there is a token, 0 for the filling before a prompt."""
        width = self.prompts.shape[1]
        places = torch.arange(width + most, device=self.device)[None] - (width - self.lengths[:, None])
        return (places >= 0).long().repeat_interleave(self.count, 0)


def choose(
    logits_RV: Tensor, chance_R: Tensor, sampling: Sampling, allowed_RV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the tokens that *chance_R*, in [0, 1), picks, and their log-probabilities at the temperature."""
    log_p_RV = (logits_RV / sampling.temperature).log_softmax(-1)
    kept_RV = log_p_RV if allowed_RV is None else log_p_RV.masked_fill(~allowed_RV, -torch.inf)
    total_RV = truncate(kept_RV, sampling).double().exp_().cumsum_(-1)
    # the first token whose running sum exceeds the chance's share of the whole: it has a probability above 0
    wanted_R1 = (chance_R * total_RV[:, -1])[:, None]
    chosen_R1 = torch.searchsorted(total_RV, wanted_R1, right=True).clamp_(max=total_RV.shape[1] - 1)
    return chosen_R1.squeeze(1), log_p_RV.gather(1, chosen_R1).squeeze(1)


def truncate(log_p_RV: Tensor, sampling: Sampling) -> Tensor:
    """Return log-probabilities with minus infinity for the tokens that are not to be sampled."""
    if sampling.top_k and sampling.top_k < log_p_RV.shape[1]:
        least_R1 = log_p_RV.topk(sampling.top_k, -1).values[:, -1:]
        log_p_RV = log_p_RV.masked_fill(log_p_RV < least_R1, -torch.inf)
    if sampling.min_p:
        least_R1 = log_p_RV.max(-1, keepdim=True).values + float(np.log(sampling.min_p))
        log_p_RV = log_p_RV.masked_fill(log_p_RV < least_R1, -torch.inf)
    if sampling.top_p < 1:
        sorted_RV, index_RV = log_p_RV.softmax(-1).sort(-1, descending=True)
        # a token stays if those before it have not reached the share yet
        beyond_RV = sorted_RV.cumsum(-1) - sorted_RV >= sampling.top_p
        beyond_RV = torch.zeros_like(beyond_RV).scatter_(1, index_RV, beyond_RV)
        log_p_RV = log_p_RV.masked_fill(beyond_RV, -torch.inf)
    return log_p_RV
