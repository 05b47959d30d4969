"""AdamW: Adam with decoupled weight decay (arXiv:1711.05101), torch's fused kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.optimizers._base import Optimizer

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdamW(Optimizer):
    """The usual choice."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the gradient's mean."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Memory of the gradient's square; 0.95 for pretraining."""

    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Keeps the division finite."""

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return torch's fused AdamW."""
        import torch

        return torch.optim.AdamW(
            self.parameter_groups(model),
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=True,
        )
