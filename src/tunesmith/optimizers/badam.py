"""BAdam: AdamW on one block of the model at a time (arXiv:2404.02827)."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.optimizers._adam import AbstractAdam
from tunesmith.optimizers._blocks import count_blocks, split_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

_BLOCK = re.compile(r"\.(\d+)\.")


class BAdam(AbstractAdam):
    """Adam's state for one transformer block only; embeddings, last norm and head are one more block.

    The gradients of the other blocks are computed and dropped: it saves memory of state, not time.
    """

    only_whole_weights: ClassVar[str] = "takes turns among blocks of whole weights; an adapter's state is small already"
    needs_all_weights: ClassVar[str] = "badam takes turns among all weights"

    switch_every: Annotated[int, Field(ge=1)] = 50
    """Steps on one block before the next one's turn."""

    order: Literal["random", "ascending", "descending"] = "random"
    """In which order blocks take turns."""

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        repeated, other = split_shapes(shapes)
        one = sum(map(math.prod, repeated)) / count_blocks(shapes)
        return self.state_bytes_per_weight * max(one, sum(map(math.prod, other)))

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return AdamW that takes turns; a weight's block is the first number in its name."""
        from tunesmith.engine.optimizers.block import BlockAdamW

        def options(name: str, _: nn.Parameter) -> dict[str, Any]:
            found = _BLOCK.search(name)
            return {"block": int(found[1]) if found else -1}

        return BlockAdamW(
            self.parameter_groups(model, learning_rate, options),
            learning_rate,
            switch_every=self.switch_every,
            order=self.order,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=True,
        )
