"""Readings of characters: tone, rhyme in each book, and how alive each reading is in verse."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from importlib.resources import files

from tunesmith.prosody.books import CILIN, PINGSHUI, TONES, Book
from tunesmith.prosody.text import LOST

# share of a tone among the uses that verse demands; below RARE a wrong tone is likelier than the reading
COMMON, RARE = 0.10, 0.03
# uses that are assumed of each tone before any is counted: a character hardly seen keeps all its readings
_PRIOR = 0.5
EVERY_GROUP = -1


class Tier(StrEnum):
    """How alive a reading is."""

    COMMON = "common"
    RARE = "rare"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a character."""

    tone: str
    """平, 上, 去 or 入; of a modern book 阴平, 阳平, 上 or 去."""
    level: bool
    """平 or not (仄)."""
    rhyme: str
    """Guangyun rhyme (one of 206), or Mandarin final."""
    group: str
    """Group of the book that was asked for."""
    weight: float
    """Share of this tone (level or not) among the character's uses in Tang regulated verse, 0 to 1."""
    tier: Tier


# one letter tells which tones a character may have: small letters leave a choice
LEVEL, OBLIQUE, BOTH, UNKNOWN = "平", "仄", "中", "?"
LEVEL_RARELY_OBLIQUE, OBLIQUE_RARELY_LEVEL = "p", "z"


class Readings:
    """The readings of one book in one script; looked up once a character, then remembered."""

    def __init__(self, book: Book, *, simplified: bool, data: "Guangyun | None" = None) -> None:
        self.book = book
        self._data = data or guangyun()
        self.simplified = simplified
        self.classes = _Classes(self)
        """Code point -> letter for its tones, for :meth:`str.translate`."""
        self._groups: dict[str, tuple[int, int]] = {}
        self._of: dict[str, tuple[Reading, ...]] = {}

    def of(self, character: str) -> tuple[Reading, ...]:
        """Return the readings of *character*, most used first; empty if it is unknown."""
        known = self._of.get(character)
        if known is None:
            found = []
            if character not in LOST:
                found = self._modern(character) if self.book.modern else self._historical(character)
            known = self._of[character] = tuple(sorted(found, key=lambda reading: -reading.weight))
        return known

    def tones(self, line: str) -> str:
        """Return one letter a character: which tones it may have, by itself and beside its neighbours."""
        letters = line.translate(self.classes)
        if self.book.modern or self._data.in_words.isdisjoint(line):
            return letters
        settled = list(letters)
        words, characters = self._data.words, self._data.in_words
        for place, character in enumerate(line):
            if character in characters:
                said = {letter for index, letter in words.get(line[place : place + 2], ()) if index == 0}
                if place:
                    said |= {letter for index, letter in words.get(line[place - 1 : place + 1], ()) if index == 1}
                said = said - {BOTH} or said
                if said:
                    settled[place] = said.pop() if len(said) == 1 else BOTH
        return "".join(settled)

    def groups(self, character: str, *, level: bool) -> int:
        """Return the rhyme groups a character may belong to with that tone, as bits; all of them if it is unknown."""
        known = self._groups.get(character)
        if known is None:
            known = self._groups[character] = self._find_groups(character)
        return known[level]

    def _find_groups(self, character: str) -> tuple[int, int]:
        readings = self.of(character)
        if not readings:
            return EVERY_GROUP, EVERY_GROUP
        bits = [0, 0]
        for reading in readings:
            if reading.tier is not Tier.UNUSED:
                bits[reading.level] |= 1 << self.book.group(reading.rhyme, character)
        return bits[0], bits[1]

    def _historical(self, character: str) -> list[Reading]:
        data = self._data
        rhymes = data.rhymes(character, simplified=self.simplified)
        tones = {TONES[rhyme] == "平" for rhyme in rhymes}
        level_uses, oblique_uses = data.uses(character, simplified=self.simplified) if len(tones) == 2 else (0, 0)
        total = level_uses + oblique_uses + 2 * _PRIOR
        share = {True: (level_uses + _PRIOR) / total, False: (oblique_uses + _PRIOR) / total}
        found = []
        for rhyme in rhymes:
            level = TONES[rhyme] == "平"
            weight = share[level] if len(tones) == 2 else 1.0
            group = self.book.groups[self.book.group(rhyme, character)]
            found.append(Reading(TONES[rhyme], level, rhyme, group, weight, _tier(weight)))
        return found

    def _modern(self, character: str) -> list[Reading]:
        finals = mandarin().get(character, [])
        found = []
        for rank, final in enumerate(finals):
            tone = ("阴平", "阳平", "上", "去")[int(final[-1]) - 1]
            group = self.book.groups[self.book.group(final[:-1])]
            # the dictionary's first reading is the usual one; how usual the others are it does not say
            weight = 1.0 if len(finals) == 1 else 0.6 if rank == 0 else 0.4 / (len(finals) - 1)
            found.append(Reading(tone, final[-1] in "12", final[:-1], group, weight, Tier.COMMON))
        return found


def _tier(weight: float) -> Tier:
    return Tier.COMMON if weight >= COMMON else Tier.RARE if weight >= RARE else Tier.UNUSED


class _Classes(dict[int, str]):
    """Fills itself: the letter of a code point is found when it is first asked for."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings

    def __missing__(self, code: int) -> str:
        tiers = {False: Tier.UNUSED, True: Tier.UNUSED}
        order = list(Tier)
        for reading in self.readings.of(chr(code)):
            tiers[reading.level] = min(tiers[reading.level], reading.tier, key=order.index)
        letter = {
            (Tier.COMMON, Tier.COMMON): BOTH,
            (Tier.COMMON, Tier.RARE): LEVEL_RARELY_OBLIQUE,
            (Tier.COMMON, Tier.UNUSED): LEVEL,
            (Tier.RARE, Tier.COMMON): OBLIQUE_RARELY_LEVEL,
            (Tier.UNUSED, Tier.COMMON): OBLIQUE,
        }.get((tiers[True], tiers[False]), UNKNOWN)
        self[code] = letter
        return letter


class Guangyun:
    """What the data files say: rhymes of Guangyun, ways to write a character, uses of each tone in verse."""

    def __init__(self, usage: Iterable[str] | None = None) -> None:
        """Read the data files; *usage* are lines to take in place of ``usage.txt``."""
        self.rhymes_of: dict[str, list[str]] = defaultdict(list)
        for line in _lines("readings.txt"):
            rhyme, _, characters = line.partition(" ")
            for character in characters:
                self.rhymes_of[character].append(rhyme)
        self.same: dict[str, str] = {}
        self.stands_for: dict[str, str] = {}
        for line in _lines("variants.txt"):
            (self.same if line[1] == "=" else self.stands_for)[line[0]] = line[2:]
        self._uses: dict[str, list[tuple[int, int]]] = {}
        self.words: dict[str, list[tuple[int, str]]] = {}
        """Two characters in a row (or one at the end of a line) -> place and tone letter of the one they settle."""
        self.in_words: set[str] = set()
        for line in _lines("usage.txt") if usage is None else usage:
            if line[1] == "+":
                self.rhymes_of[line[0]] += line[2:]
            elif line[1] != " ":
                word, _, reading = line.partition(":")
                self.words.setdefault(word, []).append((int(reading[0]), reading[1]))
                self.in_words.add(word[int(reading[0])])
            else:
                counts = list(map(int, line[2:].split()))
                self._uses[line[0]] = [(counts[0], counts[1]), (counts[2], counts[3])]

    def rhymes(self, character: str, *, simplified: bool) -> list[str]:
        """Return the Guangyun rhymes of a character; a simplified one has those of all it stands for."""
        own = self.rhymes_of.get(character, ())
        found = [*own, *self._rhymes(self.same.get(character, ""))]
        if simplified or not found:
            found += self._rhymes(self.stands_for.get(character, ""))
        return list(dict.fromkeys(found))

    def _rhymes(self, characters: Iterable[str]) -> list[str]:
        return [rhyme for character in characters for rhyme in self.rhymes_of.get(character, ())]

    def uses(self, character: str, *, simplified: bool) -> tuple[int, int]:
        """Return how often verse demanded the level and the oblique tone of a character."""
        counts = self._uses.get(character)
        return counts[simplified] if counts else (0, 0)

    @cached_property
    def only_simplified(self) -> frozenset[str]:
        """Characters that stand for others in simplified text and have no life of their own in traditional text."""
        return frozenset(self.stands_for) - set(self.rhymes_of)

    @cached_property
    def only_traditional(self) -> frozenset[str]:
        """Characters that simplified text writes otherwise."""
        sources = {source for sources in self.stands_for.values() for source in sources}
        return frozenset(sources - set(self.stands_for))


@cache
def guangyun() -> Guangyun:
    """Return the data of the package, read once."""
    return Guangyun()


@cache
def mandarin() -> dict[str, list[str]]:
    """Return character -> its Mandarin finals with tone, such as ``iang2``."""
    finals: dict[str, list[str]] = defaultdict(list)
    for line in _lines("mandarin.txt"):
        final, _, characters = line.partition(" ")
        for character in characters:
            finals[character].append(final)
    return finals


def _lines(name: str) -> list[str]:
    text = (files("tunesmith.prosody") / "data" / name).read_text("utf-8")
    return [line for line in text.split("\n") if line and not line.startswith("#")]


@cache
def readings_in(book: Book = PINGSHUI, *, simplified: bool) -> Readings:
    """Return the readings of *book*, for simplified or traditional text."""
    return Readings(book, simplified=simplified)


def readings_for(text: str, book: Book = PINGSHUI) -> Readings:
    """Return the readings that fit the script of *text*: the one that more of its characters belong to alone."""
    data = guangyun()
    traditional = sum(character in data.only_traditional for character in text)
    simplified = not traditional or sum(character in data.only_simplified for character in text) >= traditional
    return readings_in(book, simplified=simplified)


def readings(character: str, book: Book = PINGSHUI, *, simplified: bool = True) -> tuple[Reading, ...]:
    """Return the readings of one character, most used first; none if it is unknown or a stand-in such as □."""
    return readings_in(book, simplified=simplified).of(character)


def part_of(rhyme: str, character: str = "") -> str:
    """Return the part of Cilin zhengyun that a Guangyun rhyme belongs to."""
    return CILIN.groups[CILIN.group(rhyme, character)]
