"""Length match: the answer has as many characters as the reference, as a couplet's second line must."""

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import NO_REFERENCE, Score, Scorer
from tunesmith.scoring._text import count_characters


class LengthMatch(Scorer):
    """Give 1 when answer and reference are equally long (字数相等); punctuation and white space do not count.

    The rule is the first of those for couplets (对联): the second line has the characters of the first, one for one.
    """

    lines: bool = False
    """Compare line by line instead of in sum: for poems and ci, where each line has its own length."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return 1.0 for equal lengths, else 0.0; a row without a reference scores 0.0."""
        reference = conversation.reference()
        if not count_characters(reference):
            return NO_REFERENCE
        if self.lines:
            return compare_lines(line_lengths(reference), line_lengths(answer))
        expected, found = count_characters(reference), count_characters(answer)
        if expected == found:
            return Score(1.0, f"{count_noun(found, 'character')}, as the reference")
        return Score(0.0, f"{count_noun(found, 'character')}, the reference has {expected}")


def line_lengths(text: str) -> list[int]:
    """Return the number of characters of each line that has any."""
    return [length for length in map(count_characters, text.splitlines()) if length]


def compare_lines(expected: list[int], found: list[int]) -> Score:
    """Return 1.0 when the lines agree in number and in length, else 0.0 and the first that does not."""
    if len(expected) != len(found):
        return Score(0.0, f"{count_noun(len(found), 'line')}, the reference has {len(expected)}")
    for number, (wanted, length) in enumerate(zip(expected, found, strict=True), start=1):
        if wanted != length:
            return Score(0.0, f"line {number} has {count_noun(length, 'character')}, the reference has {wanted}")
    return Score(1.0, f"{count_noun(len(found), 'line')} of the reference's lengths")


def count_noun(number: int, noun: str) -> str:
    """Return ``1 line`` or ``2 lines``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
