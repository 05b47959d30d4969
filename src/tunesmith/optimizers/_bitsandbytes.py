"""What the optimizers of bitsandbytes share: state of 8 bits (arXiv:2110.02861), or in memory that is paged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.errors import Problem
from tunesmith.optimizers._adam import AbstractAdam

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import nn

# bitsandbytes keeps the state of smaller weights in float32
_SMALLEST_IN_8_BITS = 4096
# off CUDA averages, gradient and weight are unpacked for a step, and packed again
STEP_FLOATS_IN_8_BITS = 6.0


def state_bytes_in_8_bits(shapes: Sequence[tuple[int, ...]], states: int) -> float:
    """Return the bytes of *states* averages a weight: one each, and a float32 for every block of 256 weights."""
    sizes = [math.prod(shape) for shape in shapes]
    return sum(states * (n * (1 + 4 / 256) if n >= _SMALLEST_IN_8_BITS else 4 * n) for n in sizes)


def check_paged(name: str, unpaged: str, device: str) -> Iterable[Problem]:
    """Yield that only CUDA has memory that moves by itself; elsewhere bitsandbytes would page nothing and only warn."""
    if device != "cuda":
        problem = f"{name} pages its state between a GPU and the host, which needs CUDA; this machine has {device}"
        yield Problem("optimizer", problem, hint=f"use optimizer: {unpaged}")


class AbstractBitsAndBytesAdamW(AbstractAdam):
    """AdamW of bitsandbytes."""

    package: ClassVar[str] = "bitsandbytes"
    step_floats: ClassVar[float] = 4.0
    bits: ClassVar[int] = 32
    paged: ClassVar[bool] = False

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return state_bytes_in_8_bits(shapes, 2) if self.bits == 8 else super().state_bytes(shapes)

    def step_bytes(self, shapes: Sequence[tuple[int, ...]], device: str) -> float:
        return 0.0 if device == "cuda" else super().step_bytes(shapes, device)

    def check_machine(self, device: str) -> Iterable[Problem]:
        if self.paged:
            yield from check_paged(self.type_name(), "adamw_8bit" if self.bits == 8 else "adamw", device)

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return bitsandbytes' AdamW."""
        from bitsandbytes.optim import adamw

        kind: Any = adamw.AdamW
        made: torch.optim.Optimizer = kind(
            self.parameter_groups(model, learning_rate),
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            optim_bits=self.bits,
            is_paged=self.paged,
        )
        return made
