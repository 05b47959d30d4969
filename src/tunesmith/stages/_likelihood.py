"""What stages share that raise the likelihood of given tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.engine.penalties import Penalties
from tunesmith.stages._base import Example, Loss, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.engine.pack import Pack


class AbstractLikelihood(Stage):
    """Mean negative log-likelihood of the trained tokens, over the whole optimizer step.

    The loss that is reported, in training as in validation, is that mean; what the two settings add to it is minimised
    with it in training and logged beside it (``label_smoothing_loss``, ``z_loss``).
    """

    has_perplexity = True

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target spread evenly over the vocabulary, such as 0.1, so that the model stays less sure."""
    z_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the squared logsumexp of the logits, such as 1e-4; keeps logits from drifting in long trainings."""

    def size(self, examples: Sequence[Example]) -> float:
        """Return the summed weight of the trained tokens."""
        return float(sum(sequence.weight_total for example in examples for sequence in example.sequences))

    def coefficient(self, pack: Pack) -> Tensor | None:
        """Return the negative weights, unless a subclass has a loss of its own."""
        if type(self).loss is not AbstractLikelihood.loss:
            return None
        weights: Tensor = pack.weight
        return -weights

    def penalties(self) -> Penalties:
        """Return what the settings ask for."""
        return Penalties(self.label_smoothing, self.z_loss)

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the weighted sum of negative log-probabilities, which is the loss that is reported."""
        return Loss(-(pack.weight * log_probabilities).sum(), {})
