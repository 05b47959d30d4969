"""Weights that are averages: a moving one along a run, and the mean of checkpoints."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunesmith.engine.checkpoint import read_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# the decay of step n is at most (1 + n) / (10 + n), as TensorFlow's ExponentialMovingAverage has it: else the average
# of a short run would hardly have left the weights that it began with
_HEADSTART = 10


class MovingAverage:
    """The exponential moving average of weights that train, in float32 (4 bytes each)."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """Begin at the *weights* as they are; a step keeps the share *decay* of the average."""
        self._weights, self.decay = dict(weights), decay
        self._average = {name: weight.detach().float().clone() for name, weight in weights.items()}
        self._held: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after *step*, counted from 1."""
        kept = min(self.decay, (1 + step) / (_HEADSTART + step))
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight.float(), 1 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average where the weights are, which come back unchanged; whatever is loaded meanwhile is lost."""
        self._held = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(self._held)
            self._held = {}

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs beside the average, which is :meth:`in_place` and saved as the weights."""
        assert self._held, "the weights themselves are held only while their average is in place"
        rounded = {name: self._average[name] for name, weight in self._weights.items() if weight.dtype != torch.float32}
        return {"weights": self._held, "average": rounded}

    def restore(self, state: dict[str, Any], saved: Mapping[str, Tensor]) -> None:
        """Go back to a :meth:`state`; *saved* is the average as it was saved."""
        for name, average in {**saved, **state["average"]}.items():
            self._average[name].copy_(average)
        self._put(state["weights"])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])


def mean_weights(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """Return the uniform mean of the trained weights in *checkpoints*, in float32 (model soups, arXiv:2203.05482)."""
    total: dict[str, Tensor] = {}
    for path in checkpoints:
        for name, weight in read_weights(path).items():
            share = weight.float() / len(checkpoints)
            total[name] = total[name] + share if name in total else share
    return total
