"""Poems that are the same but for variants, marks and a few characters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from tunesmith.prosody.readings import guangyun
from tunesmith.prosody.text import LOST, split_text

_LOST = "□"


def folded(text: str) -> tuple[str, ...]:
    """Return the clauses of *text* with every character in one form, whatever script and glyph it is written in."""
    return tuple(clause.translate(_fold()) for clause in split_text(text).clauses)


@cache
def _fold() -> dict[int, str]:
    """Return code point -> the simplified form of the usual glyph; stand-ins for lost characters become one."""
    data = guangyun()
    simplified = {source: simple for simple, sources in data.stands_for.items() for source in sources}
    found = {ord(other): simplified.get(same[0], same[0]) for other, same in data.same.items()}
    found |= {ord(source): simple for source, simple in simplified.items()}
    return found | {ord(simple): simple for simple in data.stands_for} | {ord(character): _LOST for character in LOST}


def find_groups(texts: Iterable[tuple[str, ...]], similar: float = 1.0) -> list[int]:
    """Return for each text, given as folded clauses, the number of the first one that it is a version of, or its own.

    *similar* is the share of characters, place by place, that two texts of one length must have in common; a lost
    character agrees with any.  Only texts that share a whole clause are compared.
    """
    groups = list[int]()
    whole: dict[str, int] = {}
    by_clause: dict[tuple[int, str], list[int]] = defaultdict(list)
    runs: list[str] = []
    for number, clauses in enumerate(texts):
        run = "".join(clauses)
        runs.append(run)
        if run.count(_LOST) * 2 > len(run):  # too little is left to tell
            groups.append(number)
            continue
        first = whole.setdefault(run, number)
        if first == number and similar < 1.0:
            candidates = _candidates(clauses, len(run), by_clause)
            first = next((other for other in candidates if _alike(run, runs[other], similar)), number)
            for clause in set(clauses):
                by_clause[len(run), clause].append(number)
        groups.append(groups[first] if first != number else number)
    return groups


def _candidates(clauses: Sequence[str], length: int, by_clause: dict[tuple[int, str], list[int]]) -> Iterator[int]:
    """Yield each earlier text of that length that shares a clause, once."""
    seen: set[int] = set()
    for clause in clauses:
        for other in by_clause.get((length, clause), ()):
            if other not in seen:
                seen.add(other)
                yield other


def _alike(one: str, other: str, similar: float) -> bool:
    known = [(a, b) for a, b in zip(one, other, strict=True) if _LOST not in (a, b)]
    return len(known) * 2 >= len(one) and sum(a == b for a, b in known) >= similar * len(known)
