"""Adafactor: second moments as rows times columns (arXiv:1804.04235), by transformers; hardly any state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.optimizers._base import Optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


class Adafactor(Optimizer):
    """AdamW's adaptive rates for a few bytes a row and a column; the schedule of the recipe holds."""

    step_floats: ClassVar[float] = 4.0

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Memory of the gradient's mean; 0 keeps none, any other value costs four bytes a weight."""

    decay_rate: Annotated[float, Field(gt=-1, lt=0)] = -0.8
    """How fast the memory of squares grows: step ``t`` keeps ``1 - t ** decay_rate`` of it."""

    clip_threshold: Annotated[float, Field(gt=0)] = 1.0
    """Largest root mean square of an update, before the rate."""

    scale_by_weights: bool = False
    """Multiply the rate by the root mean square of the weights that it moves, as the paper does."""

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        squares = sum(math.prod(s[:-1]) + math.prod(s[:-2] + s[-1:]) if len(s) > 1 else math.prod(s) for s in shapes)
        return 4.0 * (squares + (sum(map(math.prod, shapes)) if self.beta1 else 0))

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return transformers' Adafactor with the rate from outside."""
        from transformers.optimization import Adafactor as LibraryAdafactor

        return LibraryAdafactor(
            self.parameter_groups(model, learning_rate),
            lr=learning_rate,
            beta1=self.beta1 or None,
            decay_rate=self.decay_rate,
            clip_threshold=self.clip_threshold,
            scale_parameter=self.scale_by_weights,
            relative_step=False,
            warmup_init=False,
        )
