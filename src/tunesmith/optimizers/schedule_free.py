"""Schedule-free AdamW: averages the weights instead of lowering the rate (arXiv:2405.15682), by pytorch_optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.optimizers._base import Optimizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import nn


class ScheduleFree(Optimizer):
    """Good at every step, so that the length of the run need not be known; warm-up still helps.

    Training moves other weights than those that are judged and saved: the loop switches between them.
    """

    step_floats: ClassVar[float] = 4.0

    package: ClassVar[str] = "pytorch_optimizer"
    averages_weights: ClassVar[bool] = True

    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """How close to the average the gradient is taken."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Memory of the gradient's square."""

    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Keeps the division finite."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse a falling rate: the average takes its place."""
        yield from super().check(recipe)
        if recipe.schedule.decay != "constant":
            problem = f"{recipe.schedule.decay} lowers the rate, but schedule_free averages the weights instead"
            yield Problem("schedule.decay", problem, hint="set schedule.decay: constant (warmup may stay)")

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return pytorch_optimizer's ScheduleFreeAdamW."""
        from pytorch_optimizer import ScheduleFreeAdamW

        groups = self.parameter_groups(model, learning_rate)
        return ScheduleFreeAdamW(groups, lr=learning_rate, betas=(self.beta1, self.beta2), eps=self.epsilon)
