"""Characters by what all their readings have in common: only such ones may stand where a form binds the tone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Literal, NamedTuple

from tunesmith.prosody.books import Book, find_book
from tunesmith.prosody.readings import BOTH, EVERY_GROUP, LEVEL, OBLIQUE, UNKNOWN, guangyun, mandarin, readings_in

Script = Literal["either", "simplified", "traditional"]
# a character that may be read in both tones whatever stands beside it, and one that its neighbours settle
ALWAYS_BOTH, OPEN = "両", "？"
ANY_GROUP = -1
_IDEOGRAPHS = range(0x4E00, 0xA000)


class Ask(NamedTuple):
    """What a form asks of one character: a mark as it is, or a tone and the rhyme groups it may belong to (as bits)."""

    tone: str = BOTH
    groups: int = ANY_GROUP
    mark: str = ""


class _Character(NamedTuple):
    tone: str
    level_group: int
    """The one group of all readings of that tone, as a bit; 0 where they are in several."""
    oblique_group: int
    group: int
    """The one group of all readings."""


class Characters:
    """All characters whose tones a book knows, simplified and traditional."""

    def __init__(self, book: Book, script: Script) -> None:
        self.book = book
        data = guangyun()
        self._settled: dict[str, set[str]] = defaultdict(set)
        if not book.modern:
            for word, settled in data.words.items():
                for index, letter in settled:
                    self._settled[word[index]].add(letter)
        left_out = {
            "either": frozenset[str](),
            "simplified": data.only_traditional,
            "traditional": data.only_simplified,
        }[script]
        known = mandarin() if book.modern else {*data.rhymes_of, *data.same, *data.stands_for}
        self._of = {
            character: found
            for character in sorted(known)
            if ord(character) in _IDEOGRAPHS and character not in left_out and (found := self._read(character))
        }

    def _read(self, character: str) -> _Character | None:
        """Return what holds for a character in both scripts and beside any neighbour; ``None`` if it is unknown."""
        scripts = [readings_in(self.book, simplified=simplified) for simplified in (True, False)]
        letters = {readings.classes[ord(character)] for readings in scripts}
        if UNKNOWN in letters:
            return None
        letters |= self._settled.get(character, set())
        tone = OPEN
        if letters in ({LEVEL}, {OBLIQUE}):
            tone = letters.pop()
        elif letters == {BOTH} and character not in self._settled:
            tone = ALWAYS_BOTH
        level, oblique = (
            _agreed(*(readings.groups(character, level=level) for readings in scripts)) for level in (True, False)
        )
        both = _agreed(
            *(readings.groups(character, level=True) | readings.groups(character, level=False) for readings in scripts)
        )
        return _Character(tone, level, oblique, both)

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __contains__(self, character: str) -> bool:
        return character in self._of

    def tone(self, character: str) -> str:
        """Return 平 or 仄 where every reading has that tone, else :data:`ALWAYS_BOTH` or :data:`OPEN`."""
        found = self._of.get(character)
        return OPEN if found is None else found.tone

    def group(self, character: str, tone: str) -> int:
        """Return the rhyme group, as a bit, of all readings in *tone* (中: in any); 0 where there are several."""
        found = self._of[character]
        return {LEVEL: found.level_group, OBLIQUE: found.oblique_group}.get(tone, found.group)

    def fits(self, character: str, ask: Ask) -> bool:
        """Say whether every reading of *character* is what is asked for."""
        if ask.mark:
            return character == ask.mark
        if character not in self._of or (ask.tone != BOTH and self._of[character].tone != ask.tone):
            return False
        return ask.groups == ANY_GROUP or bool(self.group(character, ask.tone) & ask.groups)


def _agreed(one: int, other: int) -> int:
    """Return the group that both scripts read, if it is the only one; groups are bits."""
    return one if one == other and one != EVERY_GROUP and one.bit_count() == 1 else 0


@cache
def characters_of(book: str, script: Script) -> Characters:
    """Return the characters of a book, made once."""
    return Characters(find_book(book), script)
