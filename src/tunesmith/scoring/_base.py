"""The contract of a score."""

from collections.abc import Sequence
from typing import NamedTuple

from tunesmith.core.registry import Spec
from tunesmith.data.conversation import Conversation


class Score(NamedTuple):
    """A number in [0, 1] and why."""

    value: float
    why: str = ""


NO_REFERENCE = Score(0.0, "there is no reference to compare with")
"""What a score that compares with the reference gives a row that has none."""


class Scorer(Spec):
    """Scores one answer to one conversation; the same object is metric, reward and filter.

    What the model was asked is ``conversation.prompt()``; the answer that the data gives is
    ``conversation.reference()`` (empty where there is none).
    """

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score of *answer*."""
        raise NotImplementedError

    def summary(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> float:
        """Return one number for many answers: the mean, unless the score is defined over a corpus (BLEU)."""
        values = [self.score(c, a).value for c, a in zip(conversations, answers, strict=True)]
        return sum(values) / len(values) if values else 0.0
