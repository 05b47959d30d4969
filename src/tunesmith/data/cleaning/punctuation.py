"""Punctuation restored by the form (標點): where a line ends, where a rhyme closes a sentence."""

import re
from collections.abc import Sequence

from tunesmith.data.cleaning._base import AbstractEach, Log
from tunesmith.data.cleaning._tunes import known_tune
from tunesmith.data.poems import Poem
from tunesmith.prosody.ci import find_tune, recognise_tune
from tunesmith.prosody.forms import lines_of, recognise
from tunesmith.prosody.pattern import NO_RHYME
from tunesmith.prosody.text import Text, split_text

_FULL_WIDTH = str.maketrans(",.;:?!()", "，。；：？！（）")
_AFTER_HAN = re.compile(r"(?<=[㐀-鿿□」』》])[,.;:?!()]")
_STOP = re.compile("[。！？；，、：]")


class Punctuation(AbstractEach):
    """Write marks full width, and put them where the form wants them in verse that has none.

    Regulated verse and couplets pause (，) after odd lines and stop (。) after even ones; a ci stops at its rhymes.
    What has no form that is known stays as it is.
    """

    rewrite: bool = False
    """Put the marks of the form in place of those that stand there, too."""

    def clean_one(self, poem: Poem, log: Log) -> Poem:
        text = _AFTER_HAN.sub(lambda mark: mark[0].translate(_FULL_WIDTH), poem.text)
        text = re.sub(r"(?<=[㐀-鿿，。])[ \u3000]+(?=[㐀-鿿])", lambda _: "" if _STOP.search(text) else " ", text)
        if text != poem.text:
            log.note("marks written full width", poem, poem.text[:40], text[:40])
        if self.rewrite or not _STOP.search(text):
            restored = marks_by_form(text, poem.tune)
            if restored is None:
                log.note("no marks, and no form that says where", poem, text[:40])
            elif restored != text:
                log.note("marks restored by form", poem, text[:40], restored[:40])
                text = restored
        return poem.changed(text=text)


def marks_by_form(text: str, tune: str) -> str | None:
    """Return *text* with the marks of its form, a sentence a line; ``None`` where it has no form that is known."""
    found = split_text(text)
    lines = lines_of(found)
    form = recognise(lines)
    if tune or form is None:
        by_tune = _marks_by_tune(found, known_tune(tune) if tune else recognise_tune(found))
        if tune or by_tune is not None:
            return by_tune
    lengths = {len(line) for line in lines}
    if (form is not None and lengths == {form.length}) or (len(lines) == 2 and len(lengths) == 1):
        return _marked(lines, [number % 2 == 1 for number in range(len(lines))])
    return None


def _marks_by_tune(text: Text, tune: str | None) -> str | None:
    run = "".join(text.clauses)
    having = [len(clause) for clause in text.clauses]
    for pattern in find_tune(tune) if tune else ():
        lengths = [len(line) for line in pattern.lines]
        if sum(lengths) == len(run) and (len(having) == 1 or having == lengths):
            return _marked(_cut(run, lengths), [rhyme != NO_RHYME for rhyme in pattern.rhymes])
    return None


def _cut(run: str, lengths: list[int]) -> list[str]:
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    return [run[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def _marked(lines: Sequence[str], stops: Sequence[bool]) -> str:
    marked = (line + ("。\n" if stop else "，") for line, stop in zip(lines, stops, strict=True))
    return "".join(marked).rstrip("\n，。") + "。"
