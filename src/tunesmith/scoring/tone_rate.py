"""Tone rate: share of the bound characters whose tone is the form's (平仄)."""

from tunesmith.data.conversation import Conversation
from tunesmith.prosody import COUPLET, FORMS, Rule
from tunesmith.scoring._base import Score
from tunesmith.scoring._tones import count_tones
from tunesmith.scoring._verse import AbstractFormVerse

# plain rate that two of three shuffled poems do not exceed (bench/prosody/scores.py): the best of four line types is
# chosen for each line, and many places are free
_CHANCE = {"五绝": 0.88, "七绝": 0.82, "五律": 0.85, "七律": 0.80, COUPLET: 0.5}
_CHANCE_LONG, _CHANCE_PATTERN = 0.80, 0.55


class ToneRate(AbstractFormVerse):
    """Give the share of right tones above what chance gives, squared, so that noise earns next to nothing.

    Lines of a wrong length, missing lines and characters of unknown tone (□, letters) count as wrong, and so does one
    character for each broken 对 or 粘.  Of a couplet it is the opposition of the beats and the lower line's level end.
    """

    above_chance: bool = True
    """Subtract what shuffled verse reaches, as a reward must; false gives the plain share, as tables show it."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score, the plain share, and the characters whose tone is wrong."""
        checked = self.check_answer(conversation, answer)
        if isinstance(checked, str):
            return Score(0.0, checked)
        tones = count_tones(checked)
        if not tones.bound:
            return Score(0.0, f"no line has a length of {checked.asked.name}")
        rate = tones.right / tones.bound
        why = f"{tones.right} of {tones.bound} bound characters ({rate:.0%})"
        if tones.coverage < 1:
            why += f" in {tones.coverage:.0%} of the lines"
        spans = checked.spans([f for f in checked.findings if f.rule in _TONE_RULES])
        if not self.above_chance:
            return Score(rate * tones.coverage, why, spans)
        chance = _chance(checked.report.form)
        value = (max(0.0, rate - chance) / (1 - chance) * tones.coverage) ** 2
        return Score(value, f"{why}; {chance:.0%} comes by chance", spans)


_TONE_RULES = {
    Rule.OFF_TONE,
    Rule.UPPER_END,
    Rule.RHYME_TONE,
    Rule.COUNTER,
    Rule.ADHESION,
    Rule.OPPOSITION,
    Rule.COUPLET_LOWER_END,
    Rule.UNKNOWN_CHARACTER,
}


def _chance(form: str) -> float:
    return _CHANCE.get(form, _CHANCE_LONG if form in FORMS else _CHANCE_PATTERN)
