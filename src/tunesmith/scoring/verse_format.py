"""Verse format: as many lines as the form has, each as long as it should be."""

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import Score, Span
from tunesmith.scoring._places import find_places
from tunesmith.scoring._verse import AbstractFormVerse, Checked, distance, say_lengths


class VerseFormat(AbstractFormVerse):
    """Give 1 for the right number of lines of the right lengths: format accuracy as CharPoet counts it.

    (arXiv:2401.03512.)  A verse that misses earns up to a half, the more the fewer characters are missing or too many.
    """

    partial: bool = True
    """Whether a near miss earns something, as a reward needs; false gives 1 or 0, the accuracy of papers."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score, the lengths that were found and wanted, and the lines that are not as long."""
        checked = self.check_answer(conversation, answer)
        if isinstance(checked, str):
            return Score(0.0, checked)
        found, wanted = checked.found, checked.wanted
        if found == wanted:
            return Score(1.0, f"{checked.asked.name}: lines of {say_lengths(found)}")
        value = format_share(checked) ** 2 / 2 if self.partial else 0.0
        why = f"lines of {say_lengths(found)}, {checked.asked.name} has {say_lengths(wanted)}"
        return Score(value, why, tuple(_wrong_lines(checked)))


def format_share(checked: Checked) -> float:
    """Return how near the lengths of the lines come to those that were asked for, from 0 to 1."""
    total = max(sum(checked.found), sum(checked.wanted), 1)
    return max(0.0, 1 - distance(checked.found, checked.wanted) / total)


def _wrong_lines(checked: Checked) -> list[Span]:
    lines = [line.text for line in checked.report.lines][1 if checked.asked.upper else 0 :]
    if tuple(map(len, lines)) != checked.found:
        return []
    wanted = [*checked.wanted, *[0] * len(lines)]
    spans = []
    for offsets, line, length in zip(find_places(checked.answer, lines), lines, wanted, strict=False):
        if offsets and len(line) != length:
            why = f"{len(line)} characters, {length} wanted" if length else "a line too many"
            chinese = f"{len(line)}字，应{length}字" if length else "多出的一句"
            spans.append(Span(offsets[0], offsets[-1] + 1, why, chinese))
    return spans
