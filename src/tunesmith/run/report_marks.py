"""Answers with the parts marked that the scores speak of, and what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tunesmith.run.report_view import Text

# notes shown below one answer
_MOST = 8


@dataclass(frozen=True)
class MarkedAnswer:
    """An answer cut where marks begin and end."""

    pieces: tuple[tuple[str, bool], ...]
    """Texts in order, and whether each is marked."""
    notes: tuple[tuple[str, Text], ...]
    """The marked part and what is said about it; one that several scores make is there once."""
    more: int
    """How many further notes there are."""


def mark_answer(answer: str, spans: Mapping[str, Sequence[Sequence[Any]]]) -> MarkedAnswer:
    """Return *answer* with the *spans* of each score marked: score -> start, end, why and why in Chinese."""
    found = sorted(
        {
            (start, end, Text(why, chinese or why))
            for of_score in spans.values()
            for start, end, why, chinese in of_score
            if 0 <= start < end <= len(answer)
        }
    )
    marked = {place for start, end, _ in found for place in range(start, end)}
    cuts = [0, *(at for at in range(1, len(answer)) if (at in marked) != (at - 1 in marked)), len(answer)]
    pieces = tuple((answer[start:end], start in marked) for start, end in pairwise(cuts) if start < end)
    notes = tuple(dict.fromkeys((answer[start:end], said) for start, end, said in found))
    return MarkedAnswer(pieces, notes[:_MOST], len(notes[_MOST:]))
