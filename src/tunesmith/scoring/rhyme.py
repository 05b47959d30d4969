"""Rhyme: the lines that should rhyme share one group of the rhyme book (押韵)."""

from tunesmith.data.conversation import Conversation
from tunesmith.prosody import COUPLET, FORMS, Finding, Rule
from tunesmith.scoring._base import Score
from tunesmith.scoring._verse import AbstractFormVerse, Checked, say_findings

_OFF = {
    Rule.OFF_RHYME,
    Rule.NEIGHBOUR_RHYME,
    Rule.REPEATED_RHYME,
    Rule.RHYME_TONE,
    Rule.UPPER_END,
    Rule.OFF_TONE,
    Rule.UNKNOWN_CHARACTER,
    Rule.COUPLET_LOWER_END,
}


class Rhyme(AbstractFormVerse):
    """Give the share of rhyme words that join the group which the others share, squared; the first one earns nothing.

    A rhyme word must have the form's tone, must not be repeated, and must stand at the end of a line of the right
    length; a line that should not rhyme must end in the other tone.  Lines of a couplet do not rhyme: there it is the
    lower line's level end, 1 or 0.
    """

    neighbours: bool = False
    """Let words of neighbouring groups pass (邻韵), as poets did now and then."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score, the group, and the words that do not rhyme."""
        checked = self.check_answer(conversation, answer)
        if isinstance(checked, str):
            return Score(0.0, checked)
        if not checked.report.form:
            return Score(0.0, "the rhymes of this shape are not known")
        off = [finding for finding in checked.findings if self._is_off(finding, checked)]
        if checked.report.form == COUPLET:
            return _score_end(checked, off)
        words, groups = _count_words(checked), max(1, checked.report.rhyme_group.count("、") + 1)
        if not words:
            return Score(0.0, f"{checked.asked.name} has no rhyme" if checked.found == checked.wanted else "no rhyme")
        # an unrhymed line that ends in the rhyme's tone blurs the scheme: it takes one rhyme away
        rhyming = len(_rhyme_lines(checked) - {finding.line for finding in off}) - _count_blurred(checked)
        share = max(0, rhyming - groups) / (words - groups) if words > groups else float(rhyming == words)
        group = checked.report.rhyme_group or "none"
        return Score(share**2, f"{max(0, rhyming)} of {words} rhyme words in one group ({group})", checked.spans(off))

    def _is_off(self, finding: Finding, checked: Checked) -> bool:
        if finding.rule not in _OFF or (finding.rule is Rule.NEIGHBOUR_RHYME and self.neighbours):
            return False
        if not finding.line or finding.line > len(checked.report.lines):
            return False
        line = checked.report.lines[finding.line - 1]
        ends = finding.position == len(line.text)
        return ends and (line.rhyme or checked.report.form == COUPLET)


def _rhyme_lines(checked: Checked) -> set[int]:
    """Return the numbers, from 1, of the lines of the right length that should rhyme."""
    lines = enumerate(checked.report.lines, start=1)
    return {number for number, line in lines if line.rhyme and len(line.pattern) == len(line.text)}


def _count_blurred(checked: Checked) -> int:
    lines = checked.report.lines
    ends = [finding.line for finding in checked.findings if finding.rule is Rule.UPPER_END]
    return sum(not lines[line - 1].rhyme for line in ends)


def _count_words(checked: Checked) -> int:
    """Return how many rhyme words the form asks for, those in lines that are missing included."""
    flagged = sum(line.rhyme for line in checked.report.lines)
    if checked.report.form not in FORMS:
        return flagged
    first = bool(checked.report.lines) and checked.report.lines[0].rhyme
    return max(flagged, len(checked.wanted) // 2 + first)


def _score_end(checked: Checked, off: list[Finding]) -> Score:
    """Return 1 where the lower line of a couplet of equal lengths ends in a level tone."""
    off = [finding for finding in off if finding.line == 2]
    whole = len(checked.report.lines) == 2 and len({len(line.text) for line in checked.report.lines}) == 1
    if off or not whole:
        return Score(0.0, say_findings(off) or "the lines are not equally long", checked.spans(off))
    return Score(1.0, "the lower line ends in a level tone")
