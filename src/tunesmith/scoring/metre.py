"""Metre: the verse keeps the rules of its form (格律), adhesion and opposition included; the rhyme is another score."""

from typing import Literal

from tunesmith.data.conversation import Conversation
from tunesmith.prosody import Finding, Rule, Severity
from tunesmith.scoring._base import Score
from tunesmith.scoring._verse import AbstractFormVerse, Checked, say_findings

# faults times this, over the lines, is how often the score is halved: shuffled quatrains then earn 0.04
_STEEP = 6
# a line that cannot be measured costs what a line of random characters does, and a little more
_UNMEASURED = 2
_RHYME = {Rule.OFF_RHYME, Rule.NEIGHBOUR_RHYME, Rule.FIRST_NEIGHBOUR, Rule.REPEATED_RHYME, Rule.PARALLELISM}
_SHAPE = {Rule.LENGTH, Rule.LINE_COUNT, Rule.COUPLET_LENGTH, Rule.COUPLET_PUNCTUATION}


class Metre(AbstractFormVerse):
    """Give 1 to a verse without a fault; each fault leaves a third in a quatrain, and 0.6 in an eight-line poem.

    Faults are wrong tones, 孤平, 三平尾, broken 粘 and 对, unknown characters; a line missing, too many or of a wrong
    length counts as two.
    """

    verdict: Literal["strict", "lenient"] = "strict"
    """``lenient`` lets pass what good poets did now and then, such as an unjoined couplet (失粘) or 三平尾."""

    partial: bool = True
    """Whether a verse with faults earns something, as a reward needs; false gives 1 or 0."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score, the faults, and the characters that they are about."""
        checked = self.check_answer(conversation, answer)
        if isinstance(checked, str):
            return Score(0.0, checked)
        if not checked.report.form:
            return Score(0.0, "the metre of this shape is not known")
        broken = [finding for finding in checked.findings if self._breaks(finding)]
        if not checked.report.lines or not _has_metre(checked):
            return Score(0.0, f"no line has a length of {checked.asked.name}")
        count = len([f for f in broken if f.rule not in _SHAPE]) + _UNMEASURED * _count_unmeasured(checked)
        lines = len(checked.report.lines) if checked.asked.upper else max(len(checked.wanted), 1)
        value = 2 ** (-_STEEP * count / lines) if self.partial or not count else 0.0
        return Score(value, f"{checked.report.form}: {say_findings(broken) or 'no fault'}", checked.spans(broken))

    def _breaks(self, finding: Finding) -> bool:
        if finding.rule in _RHYME:
            return False
        if finding.rule is Rule.UNKNOWN_CHARACTER:
            return True
        severity = finding.severity
        return severity is Severity.FAULT or (severity is Severity.TOLERATED and self.verdict == "strict")


def _has_metre(checked: Checked) -> bool:
    lengths = zip(checked.found, checked.wanted, strict=False)
    return any(found == wanted for found, wanted in lengths) or checked.found == checked.wanted


def _count_unmeasured(checked: Checked) -> int:
    """Return how many lines are missing, too many or of a wrong length."""
    found, wanted = checked.found, checked.wanted
    return abs(len(found) - len(wanted)) + sum(f != w for f, w in zip(found, wanted, strict=False))
