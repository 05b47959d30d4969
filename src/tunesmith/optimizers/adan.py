"""Adan: Adam with Nesterov's look-ahead on the gradient's change (arXiv:2208.06677), by pytorch_optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.optimizers._base import Optimizer

if TYPE_CHECKING:
    import torch
    from torch import nn


class Adan(Optimizer):
    """Three averages and the last gradient: twice AdamW's memory, often fewer steps."""

    state_bytes_per_weight: ClassVar[float] = 16.0
    step_floats: ClassVar[float] = 2.0
    package: ClassVar[str] = "pytorch_optimizer"

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Memory of the gradient's mean."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.92
    """Memory of the gradient's change."""

    beta3: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Memory of the square."""

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return pytorch_optimizer's Adan."""
        from pytorch_optimizer import Adan as LibraryAdan

        groups = self.parameter_groups(model, learning_rate)
        return LibraryAdan(groups, lr=learning_rate, betas=(self.beta1, self.beta2, self.beta3), weight_decouple=True)
