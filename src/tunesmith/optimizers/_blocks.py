"""Which weights are a block's matrices, and which shapes repeat with the blocks."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

# embeddings and heads come once or twice; a model of two blocks is read as if it had none
_SELDOM = 2


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the matrices that are neither embeddings nor the output head."""
    from torch import nn
    from transformers import PreTrainedModel

    outer: list[nn.Module | None] = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    outer += [m.get_output_embeddings() for m in model.modules() if isinstance(m, PreTrainedModel)]
    left_out = {id(p) for module in outer if module is not None for p in module.parameters()}
    return {id(p) for p in model.parameters() if p.ndim == 2 and id(p) not in left_out}


def split_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the shapes of the blocks' matrices, and all others, going by how often each comes."""
    times = Counter(shapes)
    repeated: list[tuple[int, ...]] = [shape for shape in shapes if len(shape) == 2 and times[shape] > _SELDOM]
    return repeated, [shape for shape in shapes if len(shape) != 2 or times[shape] <= _SELDOM]


def count_blocks(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return how many equal blocks the repeated matrices make."""
    return math.gcd(*Counter(split_shapes(shapes)[0]).values()) or 1
