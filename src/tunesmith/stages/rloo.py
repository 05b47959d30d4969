"""RLOO: REINFORCE on whole answers, each compared with the mean of the others to its prompt (arXiv:2402.14740)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from tunesmith.stages._advantages import leave_one_out, whitened
from tunesmith.stages._credit import PackCredit, clipped, clipped_share, spread
from tunesmith.stages._rewarded import AbstractClipped, Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class RLOO(AbstractClipped):
    """REINFORCE leave-one-out: the answer is one action, and the divergence from the start is part of its reward."""

    num_generations: Annotated[int, Field(ge=2)] = 4
    """Answers to each prompt, of which all but one are the baseline of that one."""

    beta: Annotated[float, Field(ge=0)] = 0.05
    """What an answer's divergence from the weights of the start costs it; 0 does not compare with them."""

    normalize_advantages: bool = False
    """Scale the step's advantages to mean 0 and deviation 1."""

    reward_clip_range: tuple[float, float] | None = None
    """Bounds of an answer's reward, such as ``[-1, 1]``; left out, none."""

    def advantages(self, batch: Batch) -> list[NDArray[np.float32]]:
        reward = batch.reward
        if self.reward_clip_range is not None:
            reward = reward.clip(*self.reward_clip_range)
        if batch.start is not None:
            # an answer that does not count has no tokens to diverge by
            ratios = zip(batch.log_ratios(), batch.counted, strict=True)
            apart = np.array([float(each.sum()) * counts for each, counts in ratios])
            reward = reward - self.beta * apart.reshape(reward.shape)
        found = leave_one_out(reward)
        return spread((whitened(found) if self.normalize_advantages else found).ravel().tolist(), batch.lengths)

    def step_size(self, batch: Batch) -> float:
        return float(len(batch.lengths))

    def policy_loss(self, log_p: Tensor, credit: PackCredit) -> tuple[Tensor, dict[str, Any]]:
        old = log_p.detach() if credit.old is None else credit.old
        ratio = credit.sum_by_sequence(log_p - old).exp()
        # every token of an answer has its advantage
        advantage = log_p.new_zeros(credit.sequences).index_copy_(0, credit.sequence, credit.advantage)
        share = clipped_share(ratio, advantage, self.epsilon, self.high)
        parts = {"clipped": share.detach().sum()}
        return clipped(ratio, advantage, self.epsilon, self.high).sum(), parts
