"""Rhyme groups by the names that people give them."""

from __future__ import annotations

from tunesmith.core.registry import suggest
from tunesmith.prosody.books import TONES, Book
from tunesmith.prosody.readings import BOTH, LEVEL, guangyun, readings_in

_NUMERALS = "一二三四五六七八九十"


def find_groups(name: str, book: Book, tones: set[str]) -> int:
    """Return the groups that *name* means, as bits: a group of the book, or a character; empty for all groups.

    Only those count that have words of all *tones*.  Raises ``ValueError`` for a name that means none, or several.
    """
    fitting = _with_tones(book, tones)
    if not fitting:
        raise ValueError(
            f"rhyme: no group of {book.name} has both level and oblique words, as this form asks; use book: 词林正韵"
        )
    if not name:
        return fitting
    named = _named(name, book)
    found = named & fitting
    groups = [group for number, group in enumerate(book.groups) if found >> number & 1]
    if len(groups) > 1:
        raise ValueError(f"rhyme: {name!r} may be {' or '.join(groups)} of {book.name}; name one of them")
    if not groups:
        wanted = "、".join(sorted(tones))
        there = [group for number, group in enumerate(book.groups) if fitting >> number & 1]
        known = "is not known" if not named else f"has no words of tone {wanted}"
        raise ValueError(f"rhyme: {name!r} {known}{suggest(name, there)}; {book.name} has {', '.join(there)}")
    return found


def _with_tones(book: Book, tones: set[str]) -> int:
    if book.modern or not tones - {BOTH}:
        return (1 << len(book.groups)) - 1
    bits = {True: 0, False: 0}
    for heading, tone in TONES.items():
        bits[tone == "平"] |= 1 << book.members[heading]
    found = -1
    for tone in tones - {BOTH}:
        found &= bits[tone == LEVEL]
    return found


def _named(name: str, book: Book) -> int:
    """Return the groups that are called *name* in either script, with or without number, or that hold it."""
    data = guangyun()
    others = {name, *data.same.get(name, ""), *data.stands_for.get(name, "")}
    for number, group in enumerate(book.groups):
        if name == group:
            return 1 << number
    called = sum(1 << number for number, group in enumerate(book.groups) if group.lstrip(_NUMERALS) in others)
    if called or len(name) != 1:
        return called
    bits = 0
    for simplified in (True, False):
        readings = readings_in(book, simplified=simplified)
        if readings.of(name):
            bits |= readings.groups(name, level=True) | readings.groups(name, level=False)
    return bits
