"""Distinct-n: how many different n-grams many answers hold; a model with one answer for all scores low."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import EMPTY, Score, Scorer
from tunesmith.scoring._ngrams import ngrams_of, units_of


class DistinctN(Scorer):
    """Give different n-grams over all n-grams (Li et al., arXiv:1510.03055), by Chinese character and word.

    Many answers are counted together; the more there are, the lower it is, so compare equally many.
    """

    n: Annotated[int, Field(ge=1, le=16)] = 2
    """Length of the runs that are counted."""

    def score(self, conversation: Conversation, answer: str) -> Score:  # noqa: ARG002
        """Return the share within one answer; one shorter than n has said nothing twice and scores 1.0."""
        units, _ = units_of(answer)
        if not units:
            return EMPTY
        total = max(0, len(units) - self.n + 1)
        different = len(set(ngrams_of(units, self.n)))
        return Score(different / total if total else 1.0, f"{different} different among {total} runs of {self.n}")

    def summary(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> float:
        """Return the share over all answers; no run of an answer reaches into the next."""
        texts = [answer for _, answer in zip(conversations, answers, strict=True)]
        runs = [run for text in texts for run in ngrams_of(units_of(text)[0], self.n)]
        return len(set(runs)) / len(runs) if runs else 0.0
