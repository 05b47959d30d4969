"""SGD: stochastic gradient descent with momentum, torch's fused kernel; with ``momentum: 0`` no state at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.optimizers._base import Optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


class SGD(Optimizer):
    """The least memory; needs a far higher rate than AdamW, and more patience."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of past gradients; 0 keeps none."""

    nesterov: bool = False
    """Look one step ahead along the momentum."""

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return 4.0 * sum(map(math.prod, shapes)) if self.momentum else 0.0

    def usual_rate(self, method_rate: float) -> float:
        """Return 500 times AdamW's, whose steps do not shrink with the gradient."""
        return method_rate * 500

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return torch's SGD."""
        import torch

        return torch.optim.SGD(
            self.parameter_groups(model, learning_rate),
            lr=learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            fused=True,
        )
