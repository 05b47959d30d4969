"""The weights that training began with, to compare the model with what it was."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunesmith.engine.checkpoint import training_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


class StartWeights:
    """A copy of the weights that train, and nothing of those that are frozen: of an adapter, next to nothing."""

    def __init__(self, model: nn.Module) -> None:
        """Copy what trains in *model* now."""
        self.model = model
        self.kept = {name: weight.detach().clone() for name, weight in training_weights(model).items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute with the weights of the start in here, without gradients."""
        weights = training_weights(self.model)
        now = {name: weight.data for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data = self.kept[name]
            yield
        finally:
            for name, weight in weights.items():
                weight.data = now[name]
