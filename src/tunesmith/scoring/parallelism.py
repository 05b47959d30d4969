"""Parallelism: how well the characters of two lines face one another (对仗)."""

from collections.abc import Iterator
from statistics import NormalDist

from tunesmith.data.conversation import Conversation
from tunesmith.prosody import COUPLET
from tunesmith.prosody.couplet import PARTICLES, halves_of
from tunesmith.prosody.parallelism import facing, percentile
from tunesmith.prosody.text import split_text
from tunesmith.scoring._base import Score, Span
from tunesmith.scoring._places import find_places
from tunesmith.scoring._verse import AbstractFormVerse, Checked

# so many standard deviations above lines put together at random earn the whole score
_FULL = 3.0
_MOST = 1 - 1e-9


class Parallelism(AbstractFormVerse):
    """Give how far facing characters beat those of lines put together at random; learnt from Tang and Song couplets.

    Of a couplet both lines count, the upper one from the prompt; of an eight-line poem the two middle couplets, of a
    longer one all but the first and last, of a quatrain both.  What the lower line repeats in the same place earns
    nothing.
    """

    above_chance: bool = True
    """Squared standard deviations above chance, 1 from three on; false gives the percentile, where chance is 0.5."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score, the percentile of each couplet, and the characters that face one another badly."""
        checked = self.check_answer(conversation, answer)
        if isinstance(checked, str):
            return Score(0.0, checked)
        found = [(above, below, percentile(above, below)) for above, below in _couplets(checked)]
        if not found:
            return Score(0.0, "there are no two lines of equal length to compare")
        shares = [0.0 if share is None else share for _, _, share in found]
        values = map(_above_chance, shares) if self.above_chance else shares
        value = sum(value * _own(above, below) for value, (above, below, _) in zip(values, found, strict=True)) / len(
            found
        )
        why = "beats " + ", ".join(f"{share:.0%}" for share in shares) + " of lines put together at random"
        return Score(value, why, tuple(_spans(checked.answer, [(above, below) for above, below, _ in found])))


def _above_chance(share: float) -> float:
    deviations = NormalDist().inv_cdf(min(share, _MOST)) if share > 0 else 0.0
    return min(1.0, max(0.0, deviations) / _FULL) ** 2


def _own(above: str, below: str) -> float:
    """Return the share of places where the lower line does not just repeat the upper one, squared."""
    same = sum(one == other and one not in PARTICLES for one, other in zip(above, below, strict=True))
    return (1 - same / len(above)) ** 2


def _couplets(checked: Checked) -> list[tuple[str, str]]:
    lines = [line.text for line in checked.report.lines]
    if checked.report.form == COUPLET:
        if not checked.asked.upper and (halves := halves_of(split_text(checked.answer))):
            lines = ["".join(halves[0]), "".join(halves[1])]
        pairs = [(lines[0], lines[1])] if len(lines) == 2 else []
    else:
        pairs = list(zip(lines[::2], lines[1::2], strict=False))
        # first and last couplet of longer poems are free
        pairs = pairs[1:-1] if len(pairs) >= 4 else pairs
    return [(above, below) for above, below in pairs if len(above) == len(below)]


def _spans(answer: str, pairs: list[tuple[str, str]]) -> Iterator[Span]:
    """Yield the characters of lower lines that stand below their upper ones more rarely than by chance."""
    for (above, below), offsets in zip(pairs, find_places(answer, [below for _, below in pairs]), strict=True):
        for one, other, information, offset in zip(above, below, facing(above, below), offsets, strict=False):
            if information is not None and information < 0:
                yield Span(offset, offset + 1, f"seldom faces {one}", f"「{other}」少与「{one}」相对")
