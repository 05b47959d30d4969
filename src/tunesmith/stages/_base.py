"""The contract of a training stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tunesmith.core.registry import Spec
from tunesmith.engine.example import Example
from tunesmith.engine.penalties import NO_PENALTIES, Penalties

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.pack import Pack
    from tunesmith.templates.chat import ChatTemplate

__all__ = ["Example", "Loss", "Stage"]


class Loss(NamedTuple):
    """What a pass adds to the step: the number to minimise, still to be divided by the step's size."""

    total: Tensor
    """Sum over the pass, a scalar."""

    parts: dict[str, float]
    """Sums worth logging beside it."""

    reported: Tensor | None = None
    """What is logged as the loss, where that is not *total*."""


class Stage(Spec):
    """Turns conversations into examples, and the log-probabilities of a pack into a loss."""

    def examples(
        self, conversations: Sequence[Conversation], template: ChatTemplate, limit: int
    ) -> list[list[Example]]:
        """Return the examples of each conversation, not yet cut to *limit* tokens (given for stages that split).

        What a conversation becomes depends on nothing but it: the data are made in parts, by several processes.
        Raises :class:`tunesmith.core.errors.DataError` that names every conversation the stage cannot use.
        """
        raise NotImplementedError

    def size(self, examples: Sequence[Example]) -> float:
        """Return what the loss of an optimizer step over *examples* is divided by."""
        raise NotImplementedError

    def coefficient(self, pack: Pack) -> Tensor | None:  # noqa: ARG002
        """Return ``[m]`` if the loss is the sum of log-probabilities times known factors: it is then computed cheaper.

        A stage that returns them must have no ``parts``, and its ``loss`` must be that very sum.
        """
        return None

    def penalties(self) -> Penalties:
        """Return what training adds to a loss given by its coefficients; evaluation does not."""
        return NO_PENALTIES

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the summed loss of *pack*; ``log_probabilities`` is ``[m]``, one for each of its predictions.

        With coefficients this is what evaluation judges by: it has no penalties.
        """
        raise NotImplementedError
