"""Rhyme: the group that most rhyme words share, and what to say about the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.prosody.readings import Readings
from tunesmith.prosody.rules import Finding, Rule


@dataclass(frozen=True, slots=True)
class RhymeWord:
    """A character that should rhyme."""

    line: int
    """0-based."""
    position: int
    """1-based, the last of its line."""
    character: str
    level: bool | None
    """Tone that it rhymes in; ``None`` where the form leaves it open."""


@dataclass(frozen=True, slots=True)
class Rhyming:
    """The group the words share, as a number of the book; ``None`` if there is none."""

    group: int | None
    findings: tuple[Finding, ...]


def find_rhyme(words: Sequence[RhymeWord], readings: Readings) -> Rhyming:
    """Return the group of *words* and who is out of it.

    A word that cannot have the tone at all is left out: the metre has said so already.
    """
    having = [(word, bits) for word in words if (bits := _groups(word, readings))]
    if not having:
        return Rhyming(None, ())
    shared = -1
    for _, bits in having:
        shared &= bits
    findings = list(_repeated(words))
    if shared:
        known = shared != -1
        return Rhyming((shared & -shared).bit_length() - 1 if known else None, tuple(findings))
    group = _most_shared([bits for _, bits in having])
    near = readings.book.neighbours[group]
    for word, bits in having:
        if not bits >> group & 1:
            rule = Rule.NEIGHBOUR_RHYME if bits & near else Rule.OFF_RHYME
            findings.append(
                Finding(
                    rule,
                    word.line + 1,
                    word.position,
                    word.character,
                    readings.book.groups[group],
                    "、".join(group_names(bits, readings)),
                )
            )
    return Rhyming(group, tuple(sorted(findings, key=lambda finding: finding.line)))


def _groups(word: RhymeWord, readings: Readings) -> int:
    if word.level is None:
        return readings.groups(word.character, level=True) | readings.groups(word.character, level=False)
    return readings.groups(word.character, level=word.level)


def rhymes_with(word: RhymeWord, group: int, readings: Readings) -> tuple[bool, bool]:
    """Say whether *word* can stand in *group*, and whether at least in a neighbouring one."""
    bits = _groups(word, readings)
    return bool(bits >> group & 1), bool(bits & readings.book.neighbours[group])


def group_names(bits: int, readings: Readings) -> list[str]:
    """Return the names of the groups in *bits*."""
    return [name for number, name in enumerate(readings.book.groups) if bits >> number & 1]


def _most_shared(all_bits: Sequence[int]) -> int:
    """Return the group that most words can be in; of equals, the one met first."""
    counts: dict[int, int] = {}
    for bits in all_bits:
        while bits > 0:
            number = (bits & -bits).bit_length() - 1
            counts[number] = counts.get(number, 0) + 1
            bits &= bits - 1
    return max(counts, key=lambda number: counts[number])


def _repeated(words: Sequence[RhymeWord]) -> list[Finding]:
    seen: set[str] = set()
    found = []
    for word in words:
        if word.character in seen:
            found.append(Finding(Rule.REPEATED_RHYME, word.line + 1, word.position, word.character, "", word.character))
        seen.add(word.character)
    return found
