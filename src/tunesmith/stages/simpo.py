"""SimPO: prefer the chosen ending by its mean log-probability and a margin, without a reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.stages._pair_losses import smoothed
from tunesmith.stages._pairs import AbstractPairs, Judged, PairSums

if TYPE_CHECKING:
    from torch import Tensor


class SimPO(AbstractPairs):
    """Rewards are mean log-probabilities, which is how answers are generated (arXiv:2405.14734)."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Scale of the reward; the paper takes 2 to 2.5, TRL and LLaMA-Factory 0.1."""

    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """How much higher the chosen reward should be: the paper's gamma, best at half of beta."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs taken to be the wrong way round."""

    alpha: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Bends the reward to ``(1 - p^-alpha) / alpha`` (AlphaPO, arXiv:2501.03884); 0 is the logarithm."""

    def judge(self, sums: PairSums) -> Judged:
        """Return the loss on the difference of rewards less the margin (equation 6)."""
        chosen = self._reward(sums.chosen / sums.chosen_length)
        rejected = self._reward(sums.rejected / sums.rejected_length)
        return Judged(smoothed(chosen - rejected - self.margin, self.label_smoothing), chosen, rejected)

    def _reward(self, log_p: Tensor) -> Tensor:
        bent = log_p if not self.alpha else (1 - (-self.alpha * log_p).exp()) / self.alpha
        return self.beta * bent
