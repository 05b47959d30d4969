"""Which tokens may follow in a verse: masks over a vocabulary for a few characters ahead."""

from __future__ import annotations

import unicodedata
from collections import Counter, OrderedDict, defaultdict
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tunesmith.generation.constraints._verse_characters import Ask, Characters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tunesmith.generation.vocabulary import Vocabulary

    Mask = NDArray[np.bool_]
    Rows = NDArray[np.int64]

Window = tuple[Ask, ...]
"""What is asked of the next characters."""
Excluded = tuple[frozenset[str], ...]
"""Characters that may not stand there although they are what is asked for; it may be shorter than the window."""

# longer tokens are rows of marks, and no verse needs them
_LONGEST_TOKEN = 16
_CACHE_BYTES = 64 << 20
HAN, MARK = "H", "M"
# marks that may be spelled in parts; others need a token
_MARKS = "，。、；：！？·…—「」『』“”‘’《》（）\u3000"


class _Part(NamedTuple):
    """A token that begins or ends within a character."""

    token: int
    head: bytes
    """The last bytes of a character that another token began."""
    characters: str
    tail: bytes
    """The first bytes of a character that another token goes on with."""


class VerseTokens:
    """The tokens of a vocabulary that verse can be written with.

    A character that has a token of its own is never spelled in parts: a tokenizer would not do it either.
    """

    def __init__(self, vocabulary: Vocabulary, characters: Characters) -> None:
        self.vocabulary, self.characters = vocabulary, characters
        self._parts: list[_Part] = []
        self._headed: list[_Part] = []
        whole = list(self._read_tokens())
        self._spellable_in_parts, self._beginnings_of = self._find_spellable()
        self.skeletons, self.headed_skeletons = self._find_skeletons(whole)
        self._codes = {character: code for code, character in enumerate(sorted({c for _, t in whole for c in t}), 1)}
        longest = max((len(text) for _, text in whole), default=1)
        self._tokens = np.array([token for token, _ in whole], dtype=np.int64)
        self._table = np.zeros((longest, len(whole)), dtype=np.int32)
        for row, (_, text) in enumerate(whole):
            self._table[: len(text), row] = [self._codes[character] for character in text]
        repeating = [token for token, text in whole if self._repeats(text)]
        repeating += [part.token for part in (*self._parts, *self._headed) if part.characters]
        self.repeating = np.array(repeating, dtype=np.int64)
        """Tokens that write one character twice, or might with what stands before or after them."""
        self._mixed = [part for part in self._parts if part.characters]
        self._headed_mixed = [part for part in self._headed if part.characters or part.tail]
        self._by_tail: dict[bytes, list[_Part]] = defaultdict(list)
        for part in self._parts:
            self._by_tail[part.tail].append(part)
        self._by_place: dict[int, tuple[Rows, NDArray[np.int32]]] = {}
        self._count_of: dict[str, Counter[int]] = {}
        self._fitting: dict[Ask, Mask] = {}
        self._beginnings: dict[Ask, dict[bytes, int]] = {}
        self._masks: OrderedDict[object, NDArray[np.uint8]] = OrderedDict()
        self._most_masks = max(512, _CACHE_BYTES // max(1, vocabulary.size // 8))
        self._lock = Lock()

    # --- what a vocabulary can spell

    def _read_tokens(self) -> Iterator[tuple[int, str]]:
        """Yield the tokens of whole characters; put those that cut characters away."""
        for token, spelling in enumerate(self.vocabulary.spellings):
            if not spelling or len(spelling) > 4 * _LONGEST_TOKEN:
                continue
            head, middle, tail = cut_bytes(spelling)
            try:
                text = middle.decode()
            except UnicodeDecodeError:
                continue
            if len(text) > _LONGEST_TOKEN or not all(c in self.characters or is_mark(c) for c in text):
                continue
            if not head and not tail:
                yield token, text
                continue
            part = _Part(token, head, text, tail)
            (self._headed if head else self._parts).append(part)

    def _find_spellable(self) -> tuple[dict[bytes, str], dict[bytes, tuple[bytes, ...]]]:
        """Return the spellings of characters that have no token of their own and can be put together from parts.

        With each, the beginnings after which tokens can complete it.
        """
        tokens_of = self.vocabulary.tokens_of
        found, beginnings = {}, {}
        for character in (*self.characters, *_MARKS):
            spelling = character.encode()
            if spelling in tokens_of:
                continue
            length = len(spelling)
            reaches = [False] * length + [True]
            for start in range(length - 1, -1, -1):
                ends = range(start + 1, length + 1)
                reaches[start] = any(reaches[end] and spelling[start:end] in tokens_of for end in ends)
            if reaches[0]:
                found[spelling] = character
                beginnings[spelling] = tuple(spelling[:end] for end in range(1, length) if reaches[end])
        return found, beginnings

    def _find_skeletons(self, whole: list[tuple[int, str]]) -> tuple[frozenset[str], frozenset[str]]:
        """Return how tokens alternate between characters and marks, with every beginning; and those with a head."""
        plain, headed = {self._skeleton(text) for _, text in whole}, set[str]()
        # what a token cuts may be a character or a mark
        for part in (*self._parts, *self._headed):
            for first in (HAN, MARK) if part.head else ("",):
                for last in (HAN, MARK) if part.tail else ("",):
                    (headed if part.head else plain).add(first + self._skeleton(part.characters) + last)
        sets = [frozenset(each[:end] for each in kinds for end in range(1, len(each) + 1)) for kinds in (plain, headed)]
        return sets[0], sets[1]

    def _repeats(self, text: str) -> bool:
        return any(text.count(character) > 1 for character in text if character in self.characters)

    def _skeleton(self, text: str) -> str:
        return "".join(HAN if character in self.characters else MARK for character in text)

    def in_parts(self, spelling: bytes) -> bool:
        """Say whether these are the bytes of a character that is written in several tokens."""
        return spelling in self._spellable_in_parts

    def can_write(self, character: str) -> bool:
        """Say whether the vocabulary can write *character* by itself."""
        spelling = character.encode()
        return spelling in self.vocabulary.tokens_of or spelling in self._spellable_in_parts

    @cached_property
    def writable(self) -> frozenset[str]:
        """The characters that the vocabulary can write."""
        return frozenset(character for character in self.characters if self.can_write(character))

    def count(self, tone: str) -> int:
        """Return how many characters can be written that are surely of *tone*."""
        return sum(self._counts(tone).values())

    def count_in(self, group: int, tone: str) -> int:
        """Return how many of them are all of one rhyme *group*, given as a bit."""
        return self._counts(tone)[group]

    def _counts(self, tone: str) -> Counter[int]:
        known = self._count_of.get(tone)
        if known is None:
            characters, ask = self.characters, Ask(tone)
            known = Counter(characters.group(c, tone) for c in self.writable if characters.fits(c, ask))
            self._count_of[tone] = known
        return known

    def most_tokens(self, mark: str) -> int:
        """Return the most tokens that a mark, or any character where it is empty, can take."""
        if not mark:
            return self._most_tokens
        return 1 if mark.encode() in self.vocabulary.tokens_of else len(mark.encode())

    @cached_property
    def _most_tokens(self) -> int:
        return max(map(len, self._spellable_in_parts), default=1)

    # --- masks

    def mask(self, window: Window, pending: bytes, excluded: Excluded = ()) -> Mask:
        """Return a new mask of the tokens that fit *window*, where *pending* bytes of its first character stand."""
        mask = self._unpacked((window, pending))
        if any(excluded):
            self._exclude(mask, window, pending, excluded)
        return mask

    def union(self, windows: Sequence[Window], pending: bytes) -> Mask:
        """Return a new mask of the tokens that fit any of *windows*."""
        if len(windows) == 1:
            return self.mask(windows[0], pending)
        return self._unpacked((tuple(windows), pending))

    def _unpacked(self, key: tuple[tuple, bytes]) -> Mask:  # type: ignore[type-arg]
        with self._lock:
            packed = self._masks.get(key)
            if packed is not None:
                self._masks.move_to_end(key)
        if packed is None:
            windows, pending = key
            if isinstance(windows[0], Ask):
                mask = self._make(windows, pending)
            else:
                mask = np.logical_or.reduce([self.mask(window, pending) for window in windows])
            packed = np.packbits(mask)
            with self._lock:
                self._masks[key] = packed
                while len(self._masks) > self._most_masks:
                    self._masks.popitem(last=False)
            return mask
        return np.unpackbits(packed, count=self.vocabulary.size).view(np.bool_)

    def _make(self, window: Window, pending: bytes) -> Mask:
        mask = np.zeros(self.vocabulary.size, dtype=np.bool_)
        for part in self._parts_after(pending):
            if self._part_fits(part, window, pending):
                mask[part.token] = True
        if not pending and len(self._tokens):
            mask[self._tokens[self._whole_fitting(window)]] = True
        return mask

    def _whole_fitting(self, window: Window) -> Rows:
        """Return the rows of the table whose tokens fit."""
        rows: Rows = np.arange(len(self._tokens))
        for place, codes in enumerate(self._table):
            found = codes[rows]
            rows = rows[self._fits(window[place])[found] if place < len(window) else found == 0]
        return rows

    def _fits(self, ask: Ask) -> Mask:
        """Return for each code whether its character is what is asked for; true for 0, where a token has ended."""
        known = self._fitting.get(ask)
        if known is not None:
            return known
        fitting = np.zeros(len(self._codes) + 1, dtype=np.bool_)
        fitting[0] = True
        if ask.mark:  # as quick as it is to keep
            fitting[self._codes.get(ask.mark, 0)] = True
            return fitting
        for character, code in self._codes.items():
            fitting[code] = self.characters.fits(character, ask)
        self._fitting[ask] = fitting
        return fitting

    def _parts_after(self, pending: bytes) -> list[_Part]:
        return self._headed if pending else self._parts

    def _part_fits(self, part: _Part, window: Window, pending: bytes) -> bool:
        begun = pending + part.head
        place = 0
        if part.head:
            character = self._spellable_in_parts.get(begun)
            if character is None:
                return not part.characters and not part.tail and begun in self.beginnings(window[0])
            if not self.characters.fits(character, window[0]):
                return False
            place = 1
        if place + len(part.characters) + bool(part.tail) > len(window):
            return False
        if not all(map(self.characters.fits, part.characters, window[place:])):
            return False
        return not part.tail or part.tail in self.beginnings(window[place + len(part.characters)])

    def beginnings(self, ask: Ask) -> dict[bytes, int]:
        """Return the bytes that such characters may begin with where tokens can go on, and how many begin so."""
        known = self._beginnings.get(ask)
        if known is not None:
            return known
        counts: dict[bytes, int] = defaultdict(int)
        spellings = {ask.mark.encode(): ask.mark} if ask.mark else self._spellable_in_parts
        for spelling, character in spellings.items():
            if self.in_parts(spelling) and self.characters.fits(character, ask):
                for beginning in self._beginnings_of[spelling]:
                    counts[beginning] += 1
        if not ask.mark:
            self._beginnings[ask] = counts
        return counts

    def begins(self, pending: bytes, ask: Ask, excluded: frozenset[str]) -> bool:
        """Say whether a character that is asked for, and not excluded, begins with *pending* and can be completed."""
        return self.beginnings(ask).get(pending, 0) > self._excluded_with(pending, ask, excluded)

    def _excluded_with(self, beginning: bytes, ask: Ask, excluded: frozenset[str]) -> int:
        return sum(
            beginning in self._beginnings_of.get(character.encode(), ()) and self.characters.fits(character, ask)
            for character in excluded
        )

    def _exclude(self, mask: Mask, window: Window, pending: bytes, excluded: Excluded) -> None:
        """Take the tokens out of *mask* that write an excluded character, or leave nothing else to go on with."""
        if not pending:
            for place, characters in enumerate(excluded):
                for character in characters:
                    mask[self._tokens[self._rows_with(place, character)]] = False
        for part in self._parts_touched(pending, excluded):
            if mask[part.token] and not self._part_stays(part, window, pending, excluded):
                mask[part.token] = False

    def _parts_touched(self, pending: bytes, excluded: Excluded) -> Iterator[_Part]:
        """Yield the parts that may not fit any more where characters are excluded."""
        spellings = [character.encode() for characters in excluded for character in characters]
        spellings = [spelling for spelling in spellings if self.in_parts(spelling)]
        if pending:
            yield from self._headed_mixed
            if any(spelling.startswith(pending) for spelling in spellings):
                yield from self._headed
            return
        yield from self._mixed
        for beginning in {beginning for spelling in spellings for beginning in self._beginnings_of[spelling]}:
            yield from self._by_tail.get(beginning, ())

    def _part_stays(self, part: _Part, window: Window, pending: bytes, excluded: Excluded) -> bool:
        """Say whether a part that fits still does where characters are excluded."""
        padded = (*excluded, *[frozenset[str]()] * (len(window) - len(excluded)))
        begun, place = pending + part.head, 0
        if part.head:
            character = self._spellable_in_parts.get(begun)
            if character is None:
                return self.begins(begun, window[0], padded[0])
            if character in padded[0]:
                return False
            place = 1
        if any(character in padded[place + index] for index, character in enumerate(part.characters)):
            return False
        place += len(part.characters)
        return not part.tail or self.begins(part.tail, window[place], padded[place])

    def _rows_with(self, place: int, character: str) -> Rows:
        """Return the rows of the table whose tokens have *character* at *place*."""
        code = self._codes.get(character)
        if code is None or place >= len(self._table):
            return np.zeros(0, dtype=np.int64)
        known = self._by_place.get(place)
        if known is None:
            order: Rows = np.argsort(self._table[place], kind="stable")
            known = self._by_place[place] = (order, self._table[place][order])
        order, codes = known
        first, last = np.searchsorted(codes, [code, code + 1])
        return order[first:last]


def cut_bytes(spelling: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the bytes that end a character, the whole characters, and the bytes that begin one."""
    start = next((place for place, byte in enumerate(spelling) if byte & 0xC0 != 0x80), len(spelling))
    head, rest = spelling[:start], spelling[start:]
    for back in range(1, min(4, len(rest)) + 1):
        byte = rest[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return (head, rest[:-back], rest[-back:]) if back < length else (head, rest, b"")
    return head, rest, b""


def is_mark(character: str) -> bool:
    """Say whether *character* may stand between lines: punctuation, space or line break."""
    return character == "\n" or unicodedata.category(character)[0] in "PZ"
