"""Repetition: the share of an answer's n-grams that do not repeat an earlier one; loops and stammers score low."""

from typing import Annotated

from pydantic import Field

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import EMPTY, Score, Scorer, Span
from tunesmith.scoring._ngrams import merged, repeated_at, units_of


class Repetition(Scorer):
    """Give one minus rep-n of Welleck et al. (arXiv:1908.04319): 1 where nothing is said twice.

    Units are Chinese characters and, in other scripts, words; punctuation does not count.
    """

    n: Annotated[int, Field(ge=1, le=16)] = 2
    """Length of the runs that are compared; 1 forbids a character to come twice, 4 suits prose."""

    def score(self, conversation: Conversation, answer: str) -> Score:  # noqa: ARG002
        """Return the share, and where an answer repeats itself; an empty one scores 0.0."""
        units, places = units_of(answer)
        if not units:
            return EMPTY
        total = len(units) - self.n + 1
        if total <= 1:
            return Score(1.0, f"{len(units)} units hold no two runs of {self.n}")
        repeated = repeated_at(units, self.n)
        spans = tuple(Span(*part, "said before", "重复") for part in merged(places, repeated, self.n))
        return Score(1 - len(repeated) / total, f"{len(repeated)} of {total} runs of {self.n} repeat an earlier", spans)
