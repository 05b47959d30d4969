"""Online DPO: of several answers to a prompt the best is preferred to the worst, as DPO does (arXiv:2402.04792)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tunesmith.stages._rewarded import AbstractRewarded, Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tunesmith.engine.example import Example
    from tunesmith.stages._asked import Rollout
    from tunesmith.stages._credit import PackCredit


class OnlineDPO(AbstractRewarded):
    """Sample, let the rewards say which answer is better, and prefer that one over the other.

    How much better does not matter.  Prompts whose answers all earned the same teach nothing.
    """

    num_generations: Annotated[int, Field(ge=2)] = 2
    """Answers to each prompt, of which the best and the worst make a pair."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """How close to the weights of the start to stay: more for small changes; for ``ipo`` its tau."""

    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """``sigmoid`` is DPO's own loss; ``ipo`` wants a margin, and no more than that."""

    def advantages(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Return 1 for the tokens of each group's best answer, -1 for those of its worst, else 0."""
        best, worst = self._choose(batch)
        signs = np.zeros(batch.reward.shape, np.float32)
        for row, (good, bad) in enumerate(zip(best, worst, strict=True)):
            if batch.reward[row, good] > batch.reward[row, bad]:
                signs[row, good], signs[row, bad] = 1, -1
        return [np.full(length, sign, np.float32) for sign, length in zip(signs.ravel(), batch.lengths, strict=True)]

    def _choose(self, batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the best and the worst of each group; answers that do not count are neither."""
        counted = np.array(batch.counted).reshape(batch.reward.shape)
        best = np.where(counted, batch.reward, -np.inf).argmax(1)
        worst = np.where(counted, batch.reward, np.inf).argmin(1)
        # where none counts both are the first, and no pair
        return best, worst

    def step_size(self, batch: Batch) -> float:
        """Return the number of pairs."""
        best, worst = self._choose(batch)
        rows = range(len(best))
        return float(max(1, sum(batch.reward[r, best[r]] > batch.reward[r, worst[r]] for r in rows)))

    def make_examples(
        self,
        rollouts: Sequence[Rollout],
        batch: Batch,
        advantages: Sequence[NDArray[np.float32]],
        most: int,  # noqa: ARG002 - a pair is not split
    ) -> list[Example]:
        """Return the pairs; the first two answers, from which nothing is learnt, where there is none."""
        best, worst = self._choose(batch)
        count = self.num_generations
        pairs = [
            (row * count + int(good), row * count + int(bad))
            for row, (good, bad) in enumerate(zip(best, worst, strict=True))
        ]
        learnt = [pair for pair in pairs if pair[0] != pair[1] and advantages[pair[0]].any()]
        return self.with_credit(learnt or [(0, 1)], rollouts, batch, advantages)

    def policy_loss(self, log_p: Tensor, credit: PackCredit) -> tuple[Tensor, dict[str, Any]]:
        import torch

        assert credit.start is not None
        # the signs of advantages make the sum over both answers the margin between them
        margin = credit.sum_by_sequence(credit.advantage * (log_p - credit.start)).view(-1, 2).sum(1)
        parts = {"margin": self.beta * margin.detach().sum(), "accuracy": (margin.detach() > 0).float().sum()}
        if self.loss_type == "ipo":
            return ((margin - 1 / (2 * self.beta)) ** 2).sum(), parts
        return -torch.nn.functional.logsigmoid(self.beta * margin).sum(), parts
