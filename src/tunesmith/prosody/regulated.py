"""Regulated verse checked: shape, metre and rhyme together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.prosody.forms import Form
from tunesmith.prosody.metre import Metre, find_metre, metre_findings
from tunesmith.prosody.readings import UNKNOWN, Readings
from tunesmith.prosody.report import Report, ScannedLine, chosen_tones
from tunesmith.prosody.rhyming import RhymeWord, Rhyming, find_rhyme, rhymes_with
from tunesmith.prosody.rules import Finding, Rule

# above this price a reading has a fault (see metre and line_types)
_FAULT = 5.0


def check_regulated(lines: Sequence[str], form: Form, readings: Readings) -> Report:
    """Check *lines* against a regulated form."""
    findings = list(_shape(lines, form))
    if not lines:
        return Report(form.name, (), "", tuple(findings), readings)
    # a line of the wrong length is left out of the metre, and the others are still judged
    tones = [readings.tones(line) if len(line) == form.length else UNKNOWN * form.length for line in lines]
    metre, rhyming = _read(lines, tones, readings, level=True)
    if metre.cost > _FAULT:
        oblique, oblique_rhyming = _read(lines, tones, readings, level=False)
        if oblique.cost < _FAULT and oblique_rhyming.group is not None:
            metre, rhyming = oblique, oblique_rhyming
            findings.append(Finding(Rule.OBLIQUE_RHYME, 0, 0, "", "", ""))
    measured = [number for number, line in enumerate(lines) if len(line) == form.length]
    findings += [finding for finding in metre_findings(metre, lines, tones) if finding.line - 1 in measured]
    findings += rhyming.findings
    findings += unknown_characters(lines, readings)
    findings.sort(key=lambda finding: (finding.line, finding.position))
    scanned = tuple(
        ScannedLine(
            line,
            fit.pattern if len(line) == form.length else "",
            chosen_tones(line, letters, fit.pattern, readings) if len(line) == form.length else readings.tones(line),
            bool(number % 2) or (not number and fit.level_end == metre.level_rhyme),
        )
        for number, (line, letters, fit) in enumerate(zip(lines, tones, metre.lines, strict=True))
    )
    group = "" if rhyming.group is None else readings.book.groups[rhyming.group]
    return Report(form.name, scanned, group, tuple(findings), readings)


def _shape(lines: Sequence[str], form: Form) -> Iterator[Finding]:
    wanted = form.lines or max(10, len(lines) + len(lines) % 2)
    if len(lines) != wanted:
        yield Finding(Rule.LINE_COUNT, 0, 0, "", f"{wanted}句", f"{len(lines)}句")
    for number, line in enumerate(lines, start=1):
        if len(line) != form.length:
            yield Finding(Rule.LENGTH, number, 0, "", f"{form.length}字", f"{len(line)}字")


def _read(lines: Sequence[str], tones: Sequence[str], readings: Readings, *, level: bool) -> tuple[Metre, Rhyming]:
    """Return the best metre and the rhyme, with the first line in the rhyme or out of it."""
    metre = find_metre(tones, level_rhyme=level)
    words = [RhymeWord(number, len(line), line[-1], level) for number, line in enumerate(lines) if number % 2]
    rhyming = find_rhyme(words, readings)
    if metre.lines[0].level_end != level or rhyming.group is None:
        return metre, rhyming
    first = RhymeWord(0, len(lines[0]), lines[0][-1], level)
    with_first = find_rhyme([first, *words], readings)
    # where the others disagree, the first line has a vote
    group = with_first.group if rhyming.findings and with_first.group is not None else rhyming.group
    inside, near = rhymes_with(first, group, readings)
    if inside:
        return metre, with_first
    if not near:
        return find_metre(tones, level_rhyme=level, first_level=not level), rhyming
    name = readings.book.groups[group]
    note = Finding(Rule.FIRST_NEIGHBOUR, 1, first.position, first.character, name, "")
    return metre, Rhyming(group, (note, *rhyming.findings))


def unknown_characters(lines: Sequence[str], readings: Readings) -> Iterator[Finding]:
    """Yield a note for every character whose tone is not known."""
    for number, line in enumerate(lines, start=1):
        letters = readings.tones(line)
        if UNKNOWN in letters:
            for position, letter in enumerate(letters, start=1):
                if letter == UNKNOWN:
                    yield Finding(Rule.UNKNOWN_CHARACTER, number, position, line[position - 1], "", "")
