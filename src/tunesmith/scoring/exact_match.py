"""Exact match: the answer is the reference, character by character."""

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import NO_REFERENCE, Score, Scorer
from tunesmith.scoring._text import normal_form, without_punctuation


class ExactMatch(Scorer):
    """Give 1 when answer and reference are equal after Unicode NFC and stripping (as in SQuAD, arXiv:1606.05250)."""

    ignore_punctuation: bool = False
    """Compare without punctuation and white space; turn on where 「，」 and a line break mean the same."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return 1.0 for equal texts, else 0.0 and the first difference; a row without a reference scores 0.0."""
        simplify = without_punctuation if self.ignore_punctuation else normal_form
        expected, found = simplify(conversation.reference()), simplify(answer)
        if not expected:
            return NO_REFERENCE
        if expected == found:
            return Score(1.0, "equals the reference")
        if not found:
            return Score(0.0, "the answer is empty")
        return Score(0.0, describe_difference(expected, found))


def describe_difference(expected: str, found: str) -> str:
    """Say where two different texts part."""
    same = next((i for i, (e, f) in enumerate(zip(expected, found, strict=False)) if e != f), None)
    if same is not None:
        return f"character {same + 1} is {found[same]!r}, the reference has {expected[same]!r}"
    if len(found) < len(expected):
        return f"ends before the reference's {expected[len(found) :][:20]!r}"
    return f"goes on after the reference with {found[len(expected) :][:20]!r}"
