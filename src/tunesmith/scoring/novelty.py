"""Novelty: the share of an answer that is not copied from the training data; small models recite."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr

from tunesmith.core.errors import Problem, UserError
from tunesmith.data.conversation import Conversation
from tunesmith.data.read import read_sources
from tunesmith.data.source import Source, check_source
from tunesmith.scoring._base import EMPTY, Score, Scorer, Span
from tunesmith.scoring._corpus import Corpus
from tunesmith.scoring._ngrams import units_of


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


class Novelty(Scorer):
    """Give the share of characters (words, in other scripts) outside runs that also stand in the training data.

    A run that is longer than ``longest`` counts as copied.  Punctuation does not count, and no run reaches over the end
    of a message.
    """

    longest: Annotated[int, Field(ge=1, le=64)] = 4
    """Longest run that may be shared; from one more on it is copied: 4 lets no line of five characters pass."""

    corpus: Annotated[list[Source], BeforeValidator(_as_list)] = []
    """Files to compare with; left out, the training data of the run."""

    _known: Corpus | None = PrivateAttr(default=None)

    @property
    def wants_training(self) -> bool:
        """Whether there is no corpus of its own."""
        return not self.corpus

    def prepare(self, training: Sequence[Conversation]) -> None:
        """Index the texts of *training*: assistant turns and plain texts."""
        self._known = Corpus(_texts(training), self.longest + 1)

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield what is wrong with the corpus's files."""
        for index, source in enumerate(self.corpus):
            yield from check_source(source, f"{self.path_in(recipe)}.corpus.{index}")

    def score(self, conversation: Conversation, answer: str) -> Score:  # noqa: ARG002
        """Return the share, the longest run shared, and where the copied ones stand."""
        units, places = units_of(answer)
        if not units:
            return EMPTY
        runs = self._index().find_runs(units)
        copied = len({unit for start, end in runs for unit in range(start, end)})
        longest = max((end - start for start, end in runs), default=0)
        spans = tuple(
            Span(places[start][0], places[end - 1][1], "in the training data", "见于训练数据") for start, end in runs
        )
        shared = f"the longest run shared with the training data has {longest} units" if runs else ""
        why = shared or f"shares no run of more than {self.longest} units with the training data"
        return Score(1 - copied / len(units), why, spans)

    def _index(self) -> Corpus:
        if self._known is None:
            if not self.corpus:
                raise UserError(
                    "novelty does not know the training data; name its files: {type: novelty, corpus: [train.json]}"
                )
            self.prepare(read_sources(self.corpus, bad_rows="skip", at="novelty.corpus").conversations)
            assert self._known is not None
        return self._known


def _texts(training: Iterable[Conversation]) -> Iterable[str]:
    for conversation in training:
        if conversation.text is not None:
            yield conversation.text
        for message in conversation.messages:
            if message.role == "assistant":
                yield message.content
