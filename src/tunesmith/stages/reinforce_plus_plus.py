"""REINFORCE++: PPO's clipped loss without a critic, advantages scaled over the whole batch (arXiv:2501.03262)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from tunesmith.stages._advantages import rewards_to_go, whitened
from tunesmith.stages._credit import PackCredit, clipped, clipped_share
from tunesmith.stages._rewarded import AbstractClipped, Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class ReinforcePlusPlus(AbstractClipped):
    """Each token's return is the answer's reward less the divergence from here on, scaled over the batch's tokens."""

    num_generations: Annotated[int, Field(ge=1)] = 1
    """Answers to each prompt; one is enough, since nothing is compared within a group."""

    baseline: Literal["none", "group"] = "none"
    """``group`` first takes the mean reward of the prompt's answers off (REINFORCE++-baseline)."""

    beta: Annotated[float, Field(ge=0)] = 0.01
    """What each token's divergence from the weights of the start costs; 0 does not compare with them."""

    @model_validator(mode="after")
    def _check_group(self) -> Self:
        if self.baseline == "group" and self.num_generations == 1:
            raise ValueError("baseline: group needs answers to compare; set num_generations: 8")
        return self

    def advantages(self, batch: Batch) -> list[NDArray[np.float32]]:
        reward = batch.reward
        if self.baseline == "group":
            reward = reward - reward.mean(1, keepdims=True)
        none = [np.zeros(length, np.float32) for length in batch.lengths]
        costs = none if batch.start is None else [self.beta * each for each in batch.log_ratios()]
        returns = [rewards_to_go(earned, cost) for earned, cost in zip(reward.ravel().tolist(), costs, strict=True)]
        counted = [each for each, counts in zip(returns, batch.counted, strict=True) if counts] or returns
        flat = np.concatenate(counted)
        scaled = whitened(flat)
        if len(counted) == len(returns):
            return [part.astype(np.float32) for part in np.split(scaled, np.cumsum(batch.lengths)[:-1])]
        kept = iter(np.split(scaled, np.cumsum([len(each) for each in counted])[:-1]))
        return [
            (next(kept) if counts else np.zeros(length)).astype(np.float32)
            for length, counts in zip(batch.lengths, batch.counted, strict=True)
        ]

    def step_size(self, batch: Batch) -> float:
        counted = zip(batch.lengths, batch.counted, strict=True)
        return float(max(1, sum(length for length, counts in counted if counts)))

    def policy_loss(self, log_p: Tensor, credit: PackCredit) -> tuple[Tensor, dict[str, Any]]:
        old = log_p.detach() if credit.old is None else credit.old
        ratio = (log_p - old).exp()
        loss = clipped(ratio, credit.advantage, self.epsilon, self.high)
        share = clipped_share(ratio, credit.advantage, self.epsilon, self.high)
        return (loss * credit.counted).sum(), {"clipped": credit.mean(share)}
