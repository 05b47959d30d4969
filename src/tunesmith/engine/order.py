"""Which examples each optimizer step sees: a function of seed and step alone, so that resuming needs no replay."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ExampleOrder:
    """Shuffles *count* examples anew each epoch and deals them out by *batch_size*; the last may be less.

    Each batch is dealt *repeats* times in a row.
    """

    count: int
    batch_size: int
    seed: int
    repeats: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return math.ceil(self.count / self.batch_size) * self.repeats

    def epoch(self, step: int) -> float:
        """Return how many passes over the data are done after *step* steps."""
        return step / self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """Return the indices of the examples of step *step*, counted from 0."""
        epoch, at = divmod(step // self.repeats, self.steps_per_epoch // self.repeats)
        return [
            int(i) for i in _shuffled(self.count, self.seed, epoch)[at * self.batch_size : (at + 1) * self.batch_size]
        ]


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # kept for the epoch: every step of it asks for a piece of the same order
    return np.random.default_rng([seed, epoch]).permutation(count)
