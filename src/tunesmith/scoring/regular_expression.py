"""Regular expression: the answer has the form that a pattern describes."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import Score, Scorer, Span


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


class RegularExpression(Scorer):
    """Give 1 when the pattern (Python's ``re``) matches, else 0.

    A pattern that backtracks without end stops the run: prefer ``[^,]*,`` to ``.*,``.
    """

    pattern: Annotated[str, AfterValidator(_check_pattern)]
    """The regular expression; ``(?i)`` in front ignores case, ``(?s)`` lets the dot match line ends."""

    where: Literal["whole", "anywhere", "nowhere"] = "whole"
    """Whether the whole answer must match (white space at its ends aside), a part of it, or no part."""

    def score(self, conversation: Conversation, answer: str) -> Score:  # noqa: ARG002
        """Return 1.0 or 0.0, and what matched."""
        if self.where == "whole":
            matches = re.fullmatch(self.pattern, answer.strip()) is not None
            return Score(float(matches), "matches" if matches else "the whole answer does not match")
        found = re.search(self.pattern, answer)
        said = "nothing matches" if found is None else f"{found[0][:40]!r} matches"
        wrong = self.where == "nowhere"
        spans = (Span(*found.span(), "matches", "匹配"),) if found and found[0] else ()
        return Score(float((found is None) is wrong), said, spans)
