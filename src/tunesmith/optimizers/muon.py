"""Muon: momentum made orthogonal, for the blocks' matrices (arXiv:2502.16982), torch's; AdamW for everything else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.optimizers._adam import AbstractAdam
from tunesmith.optimizers._blocks import hidden_matrices, split_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


class Muon(AbstractAdam):
    """Steps that turn a matrix in all its directions alike; half of AdamW's memory for those matrices.

    Steps are scaled to be as large as AdamW's, so that its rates and weight decay hold.
    """

    step_floats: ClassVar[float] = 0.7

    only_whole_weights: ClassVar[str] = (
        "makes steps of whole matrices orthogonal, which the halves of an adapter are not"
    )

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Memory of past gradients."""

    nesterov: bool = True
    """Look one step ahead along the momentum."""

    newton_schulz_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    """Iterations that make the momentum orthogonal."""

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        matrices, other = split_shapes(shapes)
        return 4.0 * sum(map(math.prod, matrices)) + 8.0 * sum(map(math.prod, other))

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return torch's Muon and AdamW as one optimizer."""
        import torch

        from tunesmith.engine.optimizers.composite import Composite

        hidden = hidden_matrices(model)

        def options(_: str, parameter: nn.Parameter) -> dict[str, Any]:
            return {"matrices": id(parameter) in hidden}

        groups = self.parameter_groups(model, learning_rate, options)
        matrices, other = ([dict(g) for g in groups if g["matrices"] is kind] for kind in (True, False))
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=learning_rate,
                    momentum=self.momentum,
                    nesterov=self.nesterov,
                    ns_steps=self.newton_schulz_steps,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if other:
            betas = (self.beta1, self.beta2)
            parts.append(torch.optim.AdamW(other, lr=learning_rate, betas=betas, eps=self.epsilon, fused=True))
        ordered = [g for g in groups if g["matrices"]] + [g for g in groups if not g["matrices"]]
        return Composite(ordered, parts, {"lr": learning_rate})
