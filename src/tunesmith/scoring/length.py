"""Length: the answer is as long as a number says; the farther off, the lower."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import EMPTY, Score, Scorer
from tunesmith.scoring._ngrams import units_of
from tunesmith.scoring._text import count_characters


class Length(Scorer):
    """Give 1 within the tolerance, else the shorter over the longer of answer and target."""

    target: Annotated[int, Field(ge=1)]
    """How long an answer should be."""

    tolerance: Annotated[int, Field(ge=0)] = 0
    """How much longer or shorter it may be and still earn 1."""

    unit: Literal["characters", "words", "lines"] = "characters"
    """Characters without punctuation and white space; words (a Chinese character each); or lines that are not empty."""

    def score(self, conversation: Conversation, answer: str) -> Score:  # noqa: ARG002
        """Return the score and the length."""
        if not answer.strip():
            return EMPTY
        count = {"characters": count_characters, "words": _count_words, "lines": _count_lines}[self.unit]
        found = count(answer)
        why = f"{found} {self.unit}, {self.target} wanted"
        nearest = min(max(found, self.target - self.tolerance), self.target + self.tolerance)
        return Score(min(found, nearest) / max(found, nearest) if found else 0.0, why)


def _count_words(text: str) -> int:
    return len(units_of(text)[0])


def _count_lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())
