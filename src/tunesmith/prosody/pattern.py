"""Free-form patterns: any tones, lengths and rhymes that a user or a tune asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tunesmith.prosody.errors import ProsodyError
from tunesmith.prosody.readings import BOTH, LEVEL, LEVEL_RARELY_OBLIQUE, OBLIQUE, OBLIQUE_RARELY_LEVEL, Readings
from tunesmith.prosody.regulated import unknown_characters
from tunesmith.prosody.report import Report, ScannedLine, chosen_tones
from tunesmith.prosody.rhyming import RhymeWord, find_rhyme
from tunesmith.prosody.rules import Finding, Rule
from tunesmith.prosody.text import Text

_LETTERS = {LEVEL: LEVEL, OBLIQUE: OBLIQUE, BOTH: BOTH, "○": LEVEL, "●": OBLIQUE, "◎": BOTH, "⊙": BOTH}
_LETTERS |= {"+": BOTH, "-": LEVEL, "|": OBLIQUE}
_RHYME, _NEW_RHYME = "韵", "换"
_MARKS = "，。、；？！,.;?! \t\n"
NO_RHYME = -1


@dataclass(frozen=True)
class Pattern:
    """Lines of tones, and which of them rhyme together."""

    lines: tuple[str, ...]
    """平, 仄 or 中 for each character."""
    rhymes: tuple[int, ...]
    """Number of the rhyme that each line ends in; -1 for none."""
    name: str = ""

    @classmethod
    def parse(cls, text: str, name: str = "") -> Pattern:
        """Read a pattern such as ``中仄平平仄，平平仄仄平韵。``; raise :class:`ProsodyError` for what it cannot mean.

        平 (or ○), 仄 (●) and 中 (◎, +) stand for characters, any mark ends a line; 韵 after a tone makes it a rhyme
        word, 换 the first word of a new rhyme.
        """
        reading = _Reading()
        for place, letter in enumerate(text, start=1):
            reading.take(letter, place)
        reading.end_line()
        if not reading.lines:
            raise ProsodyError("an empty pattern; write one such as 中仄平平仄，平平仄仄平韵")
        return cls(tuple(reading.lines), tuple(reading.rhymes), name)


@dataclass
class _Reading:
    """A pattern half read."""

    lines: list[str] = field(default_factory=list)
    rhymes: list[int] = field(default_factory=list)
    line: str = ""
    rhyme: int = NO_RHYME
    last: int = NO_RHYME

    def take(self, letter: str, place: int) -> None:
        """Read one letter of the pattern."""
        if letter in _LETTERS:
            if self.rhyme != NO_RHYME:
                self.end_line()
            self.line += _LETTERS[letter]
        elif letter in (_RHYME, _NEW_RHYME):
            if not self.line:
                raise ProsodyError(f"pattern, character {place}: {letter} must follow the tone that rhymes")
            self.last = max(self.last, 0) if letter == _RHYME else self.last + 1
            self.rhyme = self.last
        elif letter in _MARKS:
            self.end_line()
        else:
            raise ProsodyError(f"pattern, character {place}: {letter!r} is not one of 平 仄 中 韵 换 or a mark")

    def end_line(self) -> None:
        """Put away the line that was read."""
        if self.line:
            self.lines.append(self.line)
            self.rhymes.append(self.rhyme)
        self.line, self.rhyme = "", NO_RHYME


def check_pattern(text: Text, pattern: Pattern, readings: Readings) -> Report:
    """Check a text against *pattern*; where only the marks differ the text is cut as the pattern is."""
    lines, findings = _fit_lines(text.clauses, pattern)
    scanned = []
    words: dict[int, list[RhymeWord]] = {}
    for number, (line, wanted, rhyme) in enumerate(zip(lines, pattern.lines, pattern.rhymes, strict=False)):
        letters = readings.tones(line)
        if len(line) == len(wanted):
            findings += tone_findings(number, line, letters, wanted)
            letters = chosen_tones(line, letters, wanted, readings)
        scanned.append(ScannedLine(line, wanted, letters, rhyme != NO_RHYME))
        if rhyme != NO_RHYME and line:
            level = None if len(line) != len(wanted) or wanted[-1] == BOTH else wanted[-1] == LEVEL
            words.setdefault(rhyme, []).append(RhymeWord(number, len(line), line[-1], level))
    scanned += [ScannedLine(line, "", readings.tones(line)) for line in lines[len(pattern.lines) :]]
    groups = []
    for rhyming in (find_rhyme(having, readings) for _, having in sorted(words.items())):
        findings += rhyming.findings
        groups += [] if rhyming.group is None else [readings.book.groups[rhyming.group]]
    findings += unknown_characters(lines, readings)
    findings.sort(key=lambda finding: (finding.line, finding.position))
    return Report(pattern.name or "自定", tuple(scanned), "、".join(groups), tuple(findings), readings)


def _fit_lines(clauses: Sequence[str], pattern: Pattern) -> tuple[list[str], list[Finding]]:
    """Return the lines of the text as the pattern cuts them, and what is wrong with their lengths."""
    wanted = [len(line) for line in pattern.lines]
    run = "".join(clauses)
    if len(run) == sum(wanted):
        starts = [sum(wanted[:number]) for number in range(len(wanted))]
        return [run[start : start + length] for start, length in zip(starts, wanted, strict=True)], []
    findings = []
    if len(clauses) != len(wanted):
        findings.append(Finding(Rule.LINE_COUNT, 0, 0, "", f"{len(wanted)}句", f"{len(clauses)}句"))
    for number, (clause, length) in enumerate(zip(clauses, wanted, strict=False), start=1):
        if len(clause) != length:
            findings.append(Finding(Rule.LENGTH, number, 0, "", f"{length}字", f"{len(clause)}字"))
    return list(clauses), findings


def tone_findings(number: int, line: str, letters: str, wanted: str) -> Iterator[Finding]:
    """Yield the characters of one line whose tone is not the wanted one; *number* is 0-based."""
    for position, (character, have, want) in enumerate(zip(line, letters, wanted, strict=True), start=1):
        if want == BOTH or have in (want, BOTH, "?"):
            continue
        usual = {LEVEL_RARELY_OBLIQUE: LEVEL, OBLIQUE_RARELY_LEVEL: OBLIQUE}.get(have)
        if usual is None:
            yield Finding(Rule.OFF_TONE, number + 1, position, character, want, have)
        elif usual != want:
            yield Finding(Rule.RARE_READING, number + 1, position, character, want, usual)
