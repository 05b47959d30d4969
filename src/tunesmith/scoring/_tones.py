"""Tones counted: how many characters a form binds, and how many of them obey."""

from typing import NamedTuple

from tunesmith.prosody import COUPLET, Rule
from tunesmith.prosody.couplet import halves_of, opposed_places
from tunesmith.prosody.readings import BOTH, UNKNOWN
from tunesmith.prosody.text import split_text
from tunesmith.scoring._verse import Checked

_COUPLET_TONES = {Rule.OPPOSITION, Rule.COUPLET_LOWER_END, Rule.COUPLET_UPPER_END}


class Tones(NamedTuple):
    """What was counted, over lines of the right length."""

    right: int
    bound: int
    coverage: float
    """Share of the lines, of those wanted or those found, whichever are more, that have the right length."""


def count_tones(checked: Checked) -> Tones:
    """Return how many of the bound characters have the tone that the form asks for; an unknown tone is wrong."""
    if checked.report.form == COUPLET:
        return _count_couplet(checked)
    right = bound = lines = 0
    for line in checked.report.lines:
        if len(line.pattern) != len(line.text):
            continue
        lines += 1
        for want, tone in zip(line.pattern, line.tones, strict=True):
            if want != BOTH:
                bound += 1
                right += tone == want
    # a line of the wrong type is wrong in its second character, however well the others fit that type
    right -= sum(finding.rule in (Rule.ADHESION, Rule.COUNTER) for finding in checked.findings)
    coverage = lines / max(len(checked.wanted), len(checked.report.lines), 1)
    return Tones(max(0, right), bound, min(1.0, coverage))


def _count_couplet(checked: Checked) -> Tones:
    """Count the beats that face one another and the level end of the lower line; of a whole couplet both ends."""
    lines = checked.report.lines
    if len(lines) != 2 or len(lines[0].text) != len(lines[1].text):
        return Tones(0, 0, 0.0)
    given = split_text(checked.asked.upper).clauses
    halves = halves_of(split_text(checked.answer)) if not given else None
    last = len(lines[1].text) - 1
    # line, counted from 1, and place of each tone that counts
    places = {(2, place) for place in (*opposed_places(given or (halves[0] if halves else ())), last)}
    places |= set() if given else {(1, last)}
    wrong = {(finding.line, finding.position - 1) for finding in checked.findings if finding.rule in _COUPLET_TONES}
    wrong |= {(line, place) for line, place in places if lines[line - 1].tones[place] == UNKNOWN}
    return Tones(len(places - wrong), len(places), 1.0)
