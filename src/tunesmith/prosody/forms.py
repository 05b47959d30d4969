"""Forms of verse by their shape: which one a text has, and where its lines are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.prosody.text import Text


@dataclass(frozen=True)
class Form:
    """One regulated form: so many lines of so many characters."""

    name: str
    english: str
    length: int
    lines: int
    """0 for any even number from ten."""


FORMS = {
    form.name: form
    for form in (
        Form("五绝", "quatrain of five", 5, 4),
        Form("七绝", "quatrain of seven", 7, 4),
        Form("五律", "octave of five", 5, 8),
        Form("七律", "octave of seven", 7, 8),
        Form("五言排律", "long regulated verse of five", 5, 0),
        Form("七言排律", "long regulated verse of seven", 7, 0),
    )
}
COUPLET = "对联"
_LENGTHS = (5, 7)


def lines_of(text: Text) -> tuple[str, ...]:
    """Return the lines of a regulated poem: a text without marks is cut, a heading is left out."""
    lines = text.clauses
    if len(lines) == 1 and len(lines[0]) >= 20:
        lines = _cut(lines[0])
    elif len(lines) in (2, 4) and {len(line) for line in lines} in ({10}, {14}):
        half = len(lines[0]) // 2
        lines = tuple(part for line in lines for part in (line[:half], line[half:]))
    # title and author, each alone on its line
    for heading in (1, 2):
        body = lines[heading:]
        alone = all(len(sentence) == 1 for sentence in text.sentences[:heading])
        uneven = len({len(line) for line in lines[:heading]} - {len(line) for line in body}) > 0
        if alone and uneven and len(lines) - heading in (4, 8) and {len(line) for line in body} in ({5}, {7}):
            return body
    return lines


def _cut(run: str) -> tuple[str, ...]:
    for length in _LENGTHS:
        if len(run) % (2 * length) == 0:
            return tuple(run[start : start + length] for start in range(0, len(run), length))
    return (run,)


def recognise(lines: Sequence[str]) -> Form | None:
    """Return the form of *lines*; up to a quarter of them may be too long or too short."""
    lengths = Counter(map(len, lines))
    length, having = lengths.most_common(1)[0] if lengths else (0, 0)
    if length not in _LENGTHS or having * 4 < len(lines) * 3 or len(lines) % 2 or len(lines) < 4:
        return None
    for form in FORMS.values():
        if form.length == length and form.lines == len(lines):
            return form
    if len(lines) >= 10:
        return FORMS["五言排律" if length == 5 else "七言排律"]
    return None
