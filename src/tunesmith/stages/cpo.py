"""CPO: prefer the chosen ending and imitate it, without a reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.stages._pair_losses import smoothed
from tunesmith.stages._pairs import AbstractPairs, Judged, PairSums

if TYPE_CHECKING:
    from collections.abc import Iterable


class CPO(AbstractPairs):
    """DPO as if the reference found every ending equally likely, kept in place by imitation (arXiv:2401.08417)."""

    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """The loss on the difference of log-probabilities; ``ipo`` divides them by length."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """How sharply endings are told apart; for ``ipo`` its tau."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs taken to be the wrong way round; for ``sigmoid``."""

    sft_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of imitation: the chosen endings' negative log-likelihood, a mean over their tokens."""

    def check(self, recipe: Any) -> Iterable[Problem]:  # noqa: ARG002
        """Yield settings that the loss does not take."""
        if self.label_smoothing and self.loss_type != "sigmoid":
            hint = "leave it out, or use stage.loss_type: sigmoid"
            yield Problem("stage.label_smoothing", f"is not for {self.loss_type}", hint=hint)

    def judge(self, sums: PairSums) -> Judged:
        """Return the loss on the difference of log-probabilities (equation 3)."""
        chosen, rejected = sums.chosen, sums.rejected
        if self.loss_type == "ipo":
            chosen, rejected = chosen / sums.chosen_length, rejected / sums.rejected_length
            losses = (chosen - rejected - 1 / (2 * self.beta)).square()
        elif self.loss_type == "hinge":
            losses = (1 - self.beta * (chosen - rejected)).relu()
        else:
            losses = smoothed(self.beta * (chosen - rejected), self.label_smoothing)
        return Judged(losses, self.beta * chosen, self.beta * rejected)
