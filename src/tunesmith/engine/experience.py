"""What the loop asks of whoever turns prompts into what a step learns from; see ``Stage.experience``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.events import Event
    from tunesmith.engine.example import Example


class Gathered(NamedTuple):
    """What a step learns from in place of the data's examples."""

    examples: list[Example]
    measured: dict[str, float]
    """Numbers to log with the step."""
    events: list[Event]
    """What else to tell."""


class Experience(Protocol):
    """Turns the examples of a step, which are prompts, into what it learns from; the model is in evaluation mode."""

    repeats: int
    """Steps in a row that learn from the same prompts."""

    judges: bool
    """Whether :meth:`judge` says how good the weights are; else the loss over held-out examples does."""

    def gather(self, step: int, chosen: Sequence[Example]) -> Gathered:
        """Return what step *step*, counted from 0, learns from; a function of it, the seed and the weights alone."""

    def judge(self, held_out: Sequence[Example]) -> dict[str, float]:
        """Return measurements on held-out prompts; ``loss``, the less the better, decides which weights are best.

        Only where it :attr:`judges`.
        """

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on beside the weights, as tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a :meth:`state`."""
