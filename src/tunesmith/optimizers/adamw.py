"""AdamW: Adam with decoupled weight decay (arXiv:1711.05101), torch's fused kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.optimizers._adam import AbstractAdam

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdamW(AbstractAdam):
    """The usual choice."""

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return torch's fused AdamW."""
        import torch

        return torch.optim.AdamW(
            self.parameter_groups(model, learning_rate),
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=True,
        )
