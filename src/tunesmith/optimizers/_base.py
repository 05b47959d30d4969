"""The contract of an optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.registry import Spec

if TYPE_CHECKING:
    import torch
    from torch import nn


class Optimizer(Spec):
    """Builds a torch optimizer over the parameters that train."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Pull of the weights towards zero; vectors (norms, biases) are left out."""

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return the optimizer for the parameters of *model* that require a gradient."""
        raise NotImplementedError

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return what trains in two groups: matrices with weight decay, vectors without."""
        training = [p for p in model.parameters() if p.requires_grad]
        matrices, vectors = [p for p in training if p.ndim >= 2], [p for p in training if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]
