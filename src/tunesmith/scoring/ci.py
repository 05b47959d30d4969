"""Ci: how well a text fits its tune (词牌): lengths, tones and rhymes together."""

from typing import Annotated

from pydantic import AfterValidator

from tunesmith.data.conversation import Conversation
from tunesmith.prosody import COUPLET, FORMS
from tunesmith.prosody.ci import find_tune
from tunesmith.scoring._base import Score
from tunesmith.scoring._verse import AbstractVerse
from tunesmith.scoring.rhyme import Rhyme
from tunesmith.scoring.tone_rate import ToneRate
from tunesmith.scoring.verse_format import format_share


def _check_tune(name: str) -> str:
    if name != "auto":
        find_tune(name)
    return name


class Ci(AbstractVerse):
    """Give lengths times tones times rhymes, each from 0 to 1, against that form of the tune which comes nearest.

    Tones and rhymes count above chance (see tone_rate and rhyme); neighbouring rhymes pass, as in Song ci; a rhyme that
    is wholly off keeps half.
    """

    tune: Annotated[str, AfterValidator(_check_tune)] = "auto"
    """Name of the tune, such as 浣溪沙; auto: prompt, then reference, then the answer's lengths tell."""

    def form_setting(self) -> str:
        """Return the tune."""
        return self.tune

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score, its three factors, and the characters that break tone or rhyme."""
        checked = self.check_answer(conversation, answer)
        if isinstance(checked, str):
            return Score(0.0, checked)
        form = checked.report.form
        if not form or form in FORMS or form == COUPLET or not isinstance(checked.asked.form, str):
            return Score(0.0, f"no tune was asked for, and the answer is {form or 'of none'}")
        lengths = format_share(checked) ** 2
        tones = ToneRate(form=form, book=self.book).score(conversation, answer)
        rhymes = Rhyme(form=form, book=self.book, neighbours=True).score(conversation, answer)
        why = f"{form}: lengths {lengths:.0%}; tones {tones.why}; {rhymes.why}"
        spans = tuple(dict.fromkeys((*tones.spans, *rhymes.spans)))
        return Score(lengths * tones.value * (0.5 + 0.5 * rhymes.value), why, spans)
