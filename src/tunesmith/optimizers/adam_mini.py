"""Adam-mini: one second moment a row, a head or a vector instead of one a weight (arXiv:2406.16793)."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.optimizers._adam import AbstractAdam

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

_QUERY_OR_KEY = re.compile(r"\b(q_proj|k_proj|wq|wk|query|key)\.weight$")


class AdamMini(AbstractAdam):
    """AdamW's steps with half of its memory: queries and keys share a moment by head, other matrices by row."""

    step_floats: ClassVar[float] = 1.5

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return 4.0 * sum(math.prod(shape) + (shape[0] if len(shape) > 1 else 1) for shape in shapes)

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return Adam-mini; the size of a head is what the model's configuration says."""
        from tunesmith.engine.optimizers import mini

        config = getattr(model, "config", None)
        heads = getattr(config, "num_attention_heads", None)
        head = getattr(config, "head_dim", None) or (config.hidden_size // heads if config and heads else 1)

        def options(name: str, parameter: nn.Parameter) -> dict[str, Any]:
            if parameter.ndim < 2:
                return {"rows": 1 if name.endswith("bias") else 0}
            by_head = _QUERY_OR_KEY.search(name) and parameter.shape[0] % head == 0
            return {"rows": head if by_head else 1}

        groups = self.parameter_groups(model, learning_rate, options)
        return mini.AdamMini(groups, learning_rate, (self.beta1, self.beta2), self.epsilon)
