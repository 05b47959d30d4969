"""Lion: the sign of a momentum (arXiv:2302.06675), by pytorch_optimizer; half of AdamW's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tunesmith.optimizers._lion import AbstractLion

if TYPE_CHECKING:
    import torch
    from torch import nn


class Lion(AbstractLion):
    """Keeps one average instead of two; wants a lower rate and more weight decay than AdamW."""

    state_bytes_per_weight: ClassVar[float] = 4.0
    step_floats: ClassVar[float] = 2.0
    package: ClassVar[str] = "pytorch_optimizer"

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return pytorch_optimizer's Lion."""
        from pytorch_optimizer import Lion as LibraryLion

        groups = self.parameter_groups(model, learning_rate)
        return LibraryLion(groups, lr=learning_rate, betas=(self.beta1, self.beta2))
