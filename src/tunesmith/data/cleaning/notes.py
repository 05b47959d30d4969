"""Notes of editors, other readings and sources (注), taken out of the verse and kept beside it."""

import re
from dataclasses import dataclass, field

from tunesmith.data.cleaning._base import AbstractEach, Log
from tunesmith.data.poems import Poem, sentences

_OPENING = {"（": "）", "(": ")", "〖": "〗", "【": "】", "〔": "〕", "[": "]", "［": "］"}
_BRACKETS = {*_OPENING, *_OPENING.values()}
# brackets around what belongs in the verse: editors mend it with [x], and write the faulty x beside it in （）
_MENDING = "[［〔"
_NUMBER = re.compile(r"[0-9０-９一二三四五六七八九十〇○]{1,4}")
_HAN = re.compile(r"[㐀-鿿\U00020000-\U000323af□]{1,4}")
# sentences that are prose about the verse though no bracket says so
_PROSE = re.compile(
    r"^[（(]?(?:以上|按[：:，]|[均并俱]?見《|注[云曰：:]|同前[。，]?$|校[：:])|《[^》]+》卷[上中下一二三四五六七八九十]"
    r"|《[^》]+》[一二三四五六七八九十百〇○]{1,4}(?:[，。《引]|$)|引《|《全唐[詩诗]|一本作|當作「|原[注卷署][：:作]"
)
# stands alone where the verse itself is lost
_EMPTY = re.compile(r"[空缺闕阙無无存目佚。，]*")
_MARKS = re.compile(r"(?<=[，。！？；：、\n])[，。；：、]+|^[，。；：、）)」』]+(?!$)", re.MULTILINE)


class Notes(AbstractEach):
    """Take notes out of text and title; they are kept in ``notes``, and poems of which nothing is left are dropped.

    What stands in （） 〖〗 【】 is a note; [x] is an editor's mending, and stays without its
    brackets, unless it is the number of a note.  Sentences that tell where a poem was found are
    notes too, with brackets or without.
    """

    titles: bool = True
    """Take notes out of titles too, such as （其二） or （一作春望）."""

    def clean_one(self, poem: Poem, log: Log) -> Poem | None:
        bracketed = _take(poem.text)
        lines, prose = _part_prose(bracketed.text)
        text = _tidy("\n".join(lines))
        title = _take(poem.title) if self.titles else _Taken(poem.title)
        for what, found in (
            ("notes in brackets", bracketed.notes),
            ("notes without brackets", prose),
            ("notes in the title", title.notes),
        ):
            if found:
                log.note(what, poem, found[0], f"{len(found)} taken out")
        if bracketed.mended:
            log.note("mendings [x] taken as text", poem, poem.text, text)
        if bracketed.unbalanced:
            log.note("brackets without partner", poem, poem.text[-60:], text[-60:])
        cleaned = poem.changed(text=text, title=_tidy(title.text)).with_notes([*bracketed.notes, *prose, *title.notes])
        if _EMPTY.fullmatch(text.replace("\n", "")):
            log.drop("no verse is left", poem)
            return None
        return cleaned


@dataclass
class _Taken:
    """A text without its brackets, and what stood in them."""

    text: str = ""
    notes: list[str] = field(default_factory=list)
    mended: bool = False
    unbalanced: bool = False


def _take(text: str) -> _Taken:
    """Part *text* from what stands in brackets; brackets may hold others and go over line ends."""
    taken, place = _Taken(), 0
    while place < len(text):
        character = text[place]
        end = _partner(text, place) if character in _OPENING else place
        if character not in _BRACKETS:
            taken.text += character
        elif end is None and _PROSE.search(text[place + 1 :]):
            # a note that never ends goes to the end of the text if it reads like one, else only the bracket goes
            taken.notes.append(_flat(text[place + 1 :]))
            end = len(text)
        elif end is not None and end > place:
            _take_inside(taken, text, place, end)
        taken.unbalanced |= character in _BRACKETS and (end is None or end in (place, len(text)))
        place = place + 1 if end is None else end + 1
    return taken


def _take_inside(taken: _Taken, text: str, start: int, end: int) -> None:
    """Add what stands between two brackets to the verse, to the notes, or, of a note's number, to neither."""
    inside = text[start + 1 : end]
    ends_clause = end + 1 == len(text) or text[end + 1] in "，。！？；：、\n（("
    number = _NUMBER.fullmatch(inside) is not None
    if text[start] in _MENDING and _HAN.fullmatch(inside) and not (number and ends_clause):
        taken.text += inside
        taken.mended = True
    elif _flat(inside) and not number:
        taken.notes.append(_flat(inside))


def _partner(text: str, start: int) -> int | None:
    """Return where the bracket at *start* closes, counting brackets of its kind inside."""
    opening, closing, depth = text[start], _OPENING[text[start]], 0
    for place in range(start, len(text)):
        depth += (text[place] == opening) - (text[place] == closing)
        if depth == 0:
            return place
    return None


def _part_prose(text: str) -> tuple[list[str], list[str]]:
    """Return the sentences that are verse and those that are prose about it, which stand at the end."""
    found = sentences(text)
    first = next((number for number, sentence in enumerate(found) if _PROSE.search(sentence)), len(found))
    lines = text.split("\n")
    if first == len(found):
        return lines, []
    return found[:first], [_flat("".join(found[first:]))]


def _flat(text: str) -> str:
    return text.replace("\n", "").strip("。 ")


def _tidy(text: str) -> str:
    """Remove marks that nothing stands before, and empty lines."""
    lines = [_MARKS.sub("", line).strip() for line in text.split("\n")]
    return "\n".join(line for line in lines if line and not all(mark in "，。；：、）)」』 " for mark in line))
