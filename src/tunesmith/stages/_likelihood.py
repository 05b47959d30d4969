"""What stages share that raise the likelihood of given tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.stages._base import Example, Loss, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.engine.pack import Pack


class AbstractLikelihood(Stage):
    """Mean negative log-likelihood of the trained tokens, over the whole optimizer step."""

    def size(self, examples: Sequence[Example]) -> float:
        """Return the summed weight of the trained tokens."""
        return float(sum(sequence.weight_total for example in examples for sequence in example.sequences))

    def coefficient(self, pack: Pack) -> Tensor | None:
        """Return the negative weights, unless a subclass has a loss of its own."""
        if type(self).loss is not AbstractLikelihood.loss:
            return None
        weights: Tensor = pack.weight
        return -weights

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the weighted sum of negative log-probabilities."""
        return Loss(-(pack.weight * log_probabilities).sum(), {})
