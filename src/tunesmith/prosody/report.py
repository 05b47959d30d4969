"""What a check found: the form, how each character was read, and what is to be said about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.prosody.readings import BOTH, LEVEL, LEVEL_RARELY_OBLIQUE, OBLIQUE, UNKNOWN, Reading, Readings
from tunesmith.prosody.rules import Finding, Severity


@dataclass(frozen=True, slots=True)
class ScannedLine:
    """One line as it was read."""

    text: str
    pattern: str
    """What the form asks for: 平, 仄 or 中 (either); empty where it asks nothing."""
    tones: str
    """How each character was read: 平, 仄, or ? where it is unknown."""
    rhyme: bool = False
    """Whether the line ends in a rhyme word."""


@dataclass(frozen=True)
class Report:
    """The result of a check; ``strict`` and ``lenient`` are its two verdicts."""

    form: str
    """Recognised or asked; empty if there is none."""
    lines: tuple[ScannedLine, ...]
    rhyme_group: str
    """Group that the rhyme words share; empty if they share none."""
    findings: tuple[Finding, ...]
    readings: Readings
    parallelism: float | None = None
    """Of a couplet: share of mismatched lines that it beats, 0 to 1."""

    @property
    def strict(self) -> bool:
        """Whether no rule is broken."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)

    @property
    def lenient(self) -> bool:
        """Whether nothing is broken but what good poets broke now and then."""
        return all(finding.severity is not Severity.FAULT for finding in self.findings)

    @property
    def book(self) -> str:
        """Rhyme book that the verse was read by."""
        return self.readings.book.name

    @property
    def pattern(self) -> tuple[str, ...]:
        """The pattern, line by line."""
        return tuple(line.pattern for line in self.lines)

    @property
    def tone_rate(self) -> float:
        """Share of the characters that the pattern binds whose tone is the pattern's; 1 where it binds none."""
        bound = [
            tone in (want, UNKNOWN)
            for line in self.lines
            for want, tone in zip(line.pattern, line.tones, strict=False)
            if want != BOTH
        ]
        return sum(bound) / len(bound) if bound else 1.0

    def reading(self, line: int, position: int) -> Reading | None:
        """Return how a character was read (line and position 1-based); ``None`` if it is unknown."""
        scanned = self.lines[line - 1]
        level = scanned.tones[position - 1] == LEVEL
        fitting = [reading for reading in self.readings.of(scanned.text[position - 1]) if reading.level == level]
        if scanned.rhyme and position == len(scanned.text):
            fitting.sort(key=lambda reading: reading.group != self.rhyme_group)
        return fitting[0] if fitting else None

    def as_data(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {
            "form": self.form,
            "book": self.book,
            "script": "simplified" if self.readings.simplified else "traditional",
            "strict": self.strict,
            "lenient": self.lenient,
            "tone_rate": round(self.tone_rate, 4),
            "rhyme_group": self.rhyme_group,
            "lines": [
                {"text": line.text, "pattern": line.pattern, "tones": line.tones, "rhyme": line.rhyme}
                for line in self.lines
            ],
            "findings": [finding.as_data() for finding in self.findings],
            **({} if self.parallelism is None else {"parallelism": round(self.parallelism, 4)}),
        }


def chosen_tones(line: str, letters: str, pattern: str, readings: Readings) -> str:
    """Return the tones a line is read with: the pattern's where the character has them, else its usual one."""
    if not set(letters) - {LEVEL, OBLIQUE}:
        return letters
    return "".join(map(_chosen, line, letters, pattern, [readings] * len(line)))


def _chosen(character: str, letter: str, want: str, readings: Readings) -> str:
    if letter in (LEVEL, OBLIQUE, UNKNOWN):
        return letter
    if want != BOTH:
        return want
    if letter == BOTH:
        return LEVEL if readings.of(character)[0].level else OBLIQUE
    return LEVEL if letter == LEVEL_RARELY_OBLIQUE else OBLIQUE
