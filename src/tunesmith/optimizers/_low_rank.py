"""What GaLore and APOLLO share: Adam on gradients of low rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.core.registry import is_missing
from tunesmith.optimizers._adam import AbstractAdam
from tunesmith.optimizers._base import INSTALL_HINT
from tunesmith.optimizers._bitsandbytes import STEP_FLOATS_IN_8_BITS, state_bytes_in_8_bits
from tunesmith.optimizers._blocks import hidden_matrices, split_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import nn


class AbstractLowRank(AbstractAdam):
    """Keeps Adam's state of a block's matrices in few dimensions; embeddings, head and vectors take plain AdamW."""

    only_whole_weights: ClassVar[str] = "projects the gradients of whole matrices; an adapter's are of low rank already"
    step_floats: ClassVar[float] = 1.2
    scaling: ClassVar[Literal["project", "channel", "tensor"]]

    rank: Annotated[int, Field(ge=1)] = 128
    """Dimensions in which the state is kept; a matrix that has no more takes plain AdamW."""

    refresh_every: Annotated[int, Field(ge=1)] = 200
    """Steps between new projections."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    """Strength of a projected step."""

    bits: Literal[8, 32] = 32
    """Bits of each number of the state; 8 needs bitsandbytes."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse 8 bits without bitsandbytes."""
        yield from super().check(recipe)
        if self.bits == 8 and is_missing("bitsandbytes"):
            yield Problem("optimizer.bits", "8 needs the package bitsandbytes", hint=INSTALL_HINT)

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        matrices, plain = split_shapes(shapes)
        projected = [s for s in matrices if min(s) > self.rank]
        kept = [(self.rank, max(s)) for s in projected] + [s for s in matrices if min(s) <= self.rank] + plain
        bases = 4.0 * self.rank * sum(map(min, projected))
        return bases + (state_bytes_in_8_bits(kept, 2) if self.bits == 8 else 8.0 * sum(map(math.prod, kept)))

    def step_bytes(self, shapes: Sequence[tuple[int, ...]], device: str) -> float:
        unpacks = self.bits == 8 and device != "cuda"  # embeddings are not projected
        return (STEP_FLOATS_IN_8_BITS / self.step_floats if unpacks else 1) * super().step_bytes(shapes, device)

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return Adam with projections, on torch's or bitsandbytes' AdamW."""
        from tunesmith.engine.optimizers.low_rank import LowRankAdam

        hidden = hidden_matrices(model)
        projection = {
            "rank": self.rank,
            "refresh_every": self.refresh_every,
            "scale": self.scale,
            "scaling": self.scaling,
        }

        def options(_: str, parameter: nn.Parameter) -> dict[str, Any]:
            return projection if id(parameter) in hidden and min(parameter.shape) > self.rank else {}

        groups = self.parameter_groups(model, learning_rate, options)
        return LowRankAdam(groups, learning_rate, (self.beta1, self.beta2), self._adam)

    def _adam(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        if self.bits == 8:
            from bitsandbytes.optim import adamw

            kind: Any = adamw.AdamW8bit
            made: torch.optim.Optimizer = kind(groups, betas=betas, eps=self.epsilon)
            return made
        import torch

        return torch.optim.AdamW(groups, betas=betas, eps=self.epsilon, fused=True)
