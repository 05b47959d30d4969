"""Lion with a momentum of 8 bits (arXiv:2302.06675, arXiv:2110.02861), by bitsandbytes: one byte a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.optimizers._bitsandbytes import STEP_FLOATS_IN_8_BITS, state_bytes_in_8_bits
from tunesmith.optimizers._lion import AbstractLion

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


class Lion8bit(AbstractLion):
    """The smallest state of an optimizer that remembers each weight's momentum."""

    state_bytes_per_weight: ClassVar[float] = 1.02
    step_floats: ClassVar[float] = STEP_FLOATS_IN_8_BITS
    package: ClassVar[str] = "bitsandbytes"

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return state_bytes_in_8_bits(shapes, 1)

    def step_bytes(self, shapes: Sequence[tuple[int, ...]], device: str) -> float:
        return 0.0 if device == "cuda" else super().step_bytes(shapes, device)

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return bitsandbytes' Lion."""
        from bitsandbytes.optim import lion

        kind: Any = lion.Lion8bit
        groups = self.parameter_groups(model, learning_rate)
        made: torch.optim.Optimizer = kind(
            groups, lr=learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        return made
