"""Couplets (对联, and the parallel pairs of regulated verse): the hard rules, tone opposition and parallelism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.prosody.parallelism import percentile
from tunesmith.prosody.readings import LEVEL, LEVEL_RARELY_OBLIQUE, OBLIQUE, OBLIQUE_RARELY_LEVEL, Readings
from tunesmith.prosody.regulated import unknown_characters
from tunesmith.prosody.report import Report, ScannedLine, chosen_tones
from tunesmith.prosody.rules import Finding, Rule
from tunesmith.prosody.text import Text

Half = tuple[str, ...]
_CAN_BE_LEVEL = {LEVEL: True, OBLIQUE: False}
# particles that may stand in the same place of both lines
PARTICLES = frozenset("之而以于於其者也矣兮不")
# below it the facing characters are no more alike than those of lines drawn at random
_WEAK = 0.5


def halves_of(text: Text) -> tuple[Half, Half] | None:
    """Return the clauses of the upper and of the lower line; ``None`` where the text is no pair."""
    if len(text.sentences) == 2:
        return text.sentences[0], text.sentences[1]
    clauses = text.clauses
    if len(clauses) == 1 and len(clauses[0]) in (10, 14):
        middle = len(clauses[0]) // 2
        return (clauses[0][:middle],), (clauses[0][middle:],)
    if len(clauses) % 2 or not clauses or len(text.sentences) > 2:
        return None
    middle = len(clauses) // 2
    return clauses[:middle], clauses[middle:]


def check_couplet(text: Text, readings: Readings) -> Report:
    """Check a pair of lines, each of one or several clauses."""
    halves = halves_of(text)
    if halves is None:
        lines = tuple(ScannedLine(clause, "", readings.tones(clause)) for clause in text.clauses)
        shape = f"{len(text.sentences)}句{len(text.clauses)}分句"
        return Report("对联", lines, "", (Finding(Rule.LINE_COUNT, 0, 0, "", "上下两联", shape),), readings)
    return check_pair(*halves, readings)


def check_pair(upper: Sequence[str], lower: Sequence[str], readings: Readings) -> Report:
    """Check an upper line against a lower one, both given clause by clause."""
    findings = list(_shape(upper, lower))
    above, below = "".join(upper), "".join(lower)
    tones = readings.tones(above), readings.tones(below)
    share = None
    findings += _ends(above, below, *tones)
    if not findings or len(above) == len(below):
        findings += _characters(above, below)
        findings += _oppositions(upper, below, *tones)
        share = percentile(above, below)
        if share is not None and share < _WEAK:
            findings.append(Finding(Rule.PARALLELISM, 2, 0, "", f"≥{_WEAK:.0%}", f"{share:.0%}"))
    findings += unknown_characters((above, below), readings)
    lines = tuple(
        ScannedLine(line, "", chosen_tones(line, letters, "中" * len(line), readings))
        for line, letters in zip((above, below), tones, strict=True)
    )
    findings.sort(key=lambda finding: (finding.line, finding.position))
    return Report("对联", lines, "", tuple(findings), readings, parallelism=share)


def _shape(upper: Sequence[str], lower: Sequence[str]) -> Iterator[Finding]:
    above, below = [len(clause) for clause in upper], [len(clause) for clause in lower]
    if sum(above) != sum(below):
        yield Finding(Rule.COUPLET_LENGTH, 2, 0, "", f"{sum(above)}字", f"{sum(below)}字")
    elif above != below:
        wanted, have = ("、".join(map(str, lengths)) for lengths in (above, below))
        yield Finding(Rule.COUPLET_PUNCTUATION, 2, 0, "", wanted, have)


def _ends(above: str, below: str, upper_tones: str, lower_tones: str) -> Iterator[Finding]:
    if upper_tones[-1] in (LEVEL, LEVEL_RARELY_OBLIQUE):
        yield Finding(Rule.COUPLET_UPPER_END, 1, len(above), above[-1], OBLIQUE, LEVEL)
    if lower_tones[-1] in (OBLIQUE, OBLIQUE_RARELY_LEVEL):
        yield Finding(Rule.COUPLET_LOWER_END, 2, len(below), below[-1], LEVEL, OBLIQUE)


def _characters(above: str, below: str) -> Iterator[Finding]:
    """Yield same characters in the same place, and repetitions of one line that the other does not mirror."""
    for position, (one, other) in enumerate(zip(above, below, strict=True), start=1):
        if one == other and one not in PARTICLES:
            yield Finding(Rule.SAME_CHARACTER, 2, position, other, "", other)
    first_above = [above.index(character) for character in above]
    first_below = [below.index(character) for character in below]
    for place, (up, down) in enumerate(zip(first_above, first_below, strict=True)):
        if up != down:
            # the line that does not repeat (or repeats something else) is the one to change
            line, text, partner = (2, below, up) if up != place else (1, above, down)
            found = f"「{text[place]}」"
            yield Finding(Rule.REPETITION, line, place + 1, text[place], f"与第{partner + 1}字同", found)


def opposed_places(clauses: Sequence[str]) -> list[int]:
    """Return the places (0-based, over the whole line) where a couplet's tones face each other as opposites.

    They are the beats: even places of each clause, and the ends of clauses but the last.
    """
    places, start = list[int](), 0
    length = sum(map(len, clauses))
    for clause in clauses:
        end = start + len(clause)
        odd = len(clause) % 2
        beats = set(range(start + 1, end - odd, 2)) | ({end - 1} if end < length else set())
        places += sorted(beats - {length - 1})
        start = end
    return places


def _oppositions(upper: Sequence[str], below: str, up: str, low: str) -> Iterator[Finding]:
    """Yield beats whose tones agree."""
    for place in opposed_places(upper):
        one, other = _CAN_BE_LEVEL.get(up[place]), _CAN_BE_LEVEL.get(low[place])
        if one is not None and one == other:
            want = OBLIQUE if one else LEVEL
            yield Finding(Rule.OPPOSITION, 2, place + 1, below[place], want, LEVEL if one else OBLIQUE)
