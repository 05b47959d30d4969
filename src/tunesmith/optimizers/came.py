"""CAME: Adafactor that trusts steady updates more (arXiv:2307.02047), by pytorch_optimizer; half of AdamW's memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.optimizers._base import Optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


class CAME(Optimizer):
    """Factored second moments, a full first one, and confidence in each update."""

    state_bytes_per_weight: ClassVar[float] = 4.0
    step_floats: ClassVar[float] = 4.0
    package: ClassVar[str] = "pytorch_optimizer"

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the update's mean."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Memory of the gradient's square."""

    beta3: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Memory of the update's unsteadiness."""

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        factors = sum(2 * (math.prod(s[:-1]) + math.prod(s[:-2] + s[-1:])) if len(s) > 1 else s[0] for s in shapes)
        return super().state_bytes(shapes) + 4.0 * factors

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return pytorch_optimizer's CAME."""
        from pytorch_optimizer import CAME as LibraryCame  # noqa: N811

        groups = self.parameter_groups(model, learning_rate)
        return LibraryCame(groups, lr=learning_rate, betas=(self.beta1, self.beta2, self.beta3))
