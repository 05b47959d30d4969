"""The contract of a score."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tunesmith.core.registry import Spec
from tunesmith.data.conversation import Conversation


class Span(NamedTuple):
    """A part of an answer that a score has something to say about."""

    start: int
    """First character of the answer, from 0."""
    end: int
    """One past the last."""
    why: str
    chinese: str = ""
    """The same in Chinese; empty where there is only one way to say it."""


class Score(NamedTuple):
    """A number in [0, 1], why, and which parts of the answer it is about."""

    value: float
    why: str = ""
    spans: tuple[Span, ...] = ()


Judge = Callable[[Sequence[tuple[Conversation, str]]], list[float]]
"""A model that says what answers to conversations are worth; loaded by whoever may load models."""

NO_REFERENCE = Score(0.0, "there is no reference to compare with")
"""What a score that compares with the reference gives a row that has none."""
EMPTY = Score(0.0, "the answer says nothing")
"""What a score that looks at the answer alone gives one without a word in it."""


class Scorer(Spec):
    """Scores one answer to one conversation; the same object is metric, reward and filter.

    What the model was asked is ``conversation.prompt()``; the answer that the data gives is
    ``conversation.reference()`` (empty where there is none).
    """

    @property
    def wants_training(self) -> bool:
        """Whether :meth:`prepare` must be called with the training conversations before the first answer is scored."""
        return False

    def prepare(self, training: Sequence[Conversation]) -> None:  # noqa: ARG002 - for those that override it
        """Learn what was trained on; called once, and only where :attr:`wants_training` says so."""
        return

    def load(self, load_judge: Callable[[str], Judge]) -> None:  # noqa: ARG002 - for those that override it
        """Have the model loaded that it asks, if it asks one; called before the first answer is scored."""
        return

    def judge_model(self) -> str | None:
        """Return the model that :meth:`load` has loaded, which a plan counts; None where it asks none."""
        return None

    def path_in(self, recipe: Any) -> str:
        """Return where *recipe* names this score, for problems: among its evaluation's, or as a reward."""
        places = [index for index, score in enumerate(recipe.evaluation.scores) if score is self]
        return f"evaluation.scores.{places[0]}" if places else "stage.rewards"

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score of *answer*."""
        raise NotImplementedError

    def score_all(self, answered: Sequence[tuple[Conversation, str]]) -> list[Score]:
        """Return the score of each answer to its conversation."""
        return [self.score(conversation, answer) for conversation, answer in answered]

    def summary(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> float:
        """Return one number for many answers: the mean, unless the score is defined over a corpus (BLEU)."""
        values = [score.value for score in self.score_all(list(zip(conversations, answers, strict=True)))]
        return sum(values) / len(values) if values else 0.0


def prepare_scores(
    scores: Sequence[Scorer],
    read_training: Callable[[], Sequence[Conversation]],
    load_judge: Callable[[str], Judge] | None = None,
) -> None:
    """Show the training conversations to those of *scores* that want them, and load the models that they ask.

    Nothing is read or loaded where none does, and nothing is loaded without *load_judge*, which loads from a path.
    """
    wanting = [score for score in scores if score.wants_training]
    if wanting:
        training = read_training()
        for score in wanting:
            score.prepare(training)
    if load_judge is not None:
        for score in scores:
            score.load(load_judge)
