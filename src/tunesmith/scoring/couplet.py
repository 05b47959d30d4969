"""Couplet: the lower line answers the upper one by the rules (对联): length, ends, beats, no shared character."""

from tunesmith.data.conversation import Conversation
from tunesmith.prosody import COUPLET, Rule
from tunesmith.scoring._base import Score
from tunesmith.scoring._tones import count_tones
from tunesmith.scoring._verse import AbstractVerse, say_findings
from tunesmith.scoring.verse_format import format_share

_SHARED = {Rule.SAME_CHARACTER, Rule.REPETITION}
# half of a lower line's beats oppose the upper one's by chance
_CHANCE = 0.5
_OTHER_LENGTH = 0.1


class Couplet(AbstractVerse):
    """Give 1 to a lower line that keeps every rule: length, clauses, level end, opposed beats, no shared character.

    The upper line is read from the prompt; without one the answer must hold both lines.  Tones count above chance,
    squared; each character that repeats another, or fails to, halves the score; so does another division into clauses;
    a lower line of another length keeps a tenth at most.
    """

    def form_setting(self) -> str:
        """Return the one form there is."""
        return COUPLET

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score, the rules that are broken, and where."""
        checked = self.check_answer(conversation, answer)
        if isinstance(checked, str):
            return Score(0.0, checked)
        tones = count_tones(checked)
        if not tones.bound:
            why = say_findings([f for f in checked.findings if not f.position])
            return Score(_OTHER_LENGTH * format_share(checked) ** 2, why or "the lines are not equally long")
        broken = [finding for finding in checked.findings if finding.rule is not Rule.PARALLELISM]
        shared = sum(finding.rule in _SHARED for finding in broken)
        value = (max(0.0, tones.right / tones.bound - _CHANCE) / (1 - _CHANCE)) ** 2 / 2**shared
        if any(finding.rule is Rule.COUPLET_PUNCTUATION for finding in broken):
            value /= 2
        why = say_findings(broken) or f"{tones.right} of {tones.bound} beats opposed, no rule broken"
        return Score(value, why, checked.spans(broken))
