"""Runs of units (Chinese characters, words) in a text: how many there are, how many are new."""

from collections.abc import Iterator, Sequence

from tunesmith.scoring._text import UNIT


def units_of(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the units of *text* in lower case, and where each starts and ends."""
    found = [(match[0].lower(), match.span()) for match in UNIT.finditer(text)]
    return [unit for unit, _ in found], [place for _, place in found]


def ngrams_of(units: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Yield every run of *size* units."""
    return zip(*(units[start:] for start in range(size)), strict=False)


def repeated_at(units: Sequence[str], size: int) -> list[int]:
    """Return where the runs of *size* units start that have occurred before."""
    seen: set[tuple[str, ...]] = set()
    found = []
    for start, ngram in enumerate(ngrams_of(units, size)):
        if ngram in seen:
            found.append(start)
        seen.add(ngram)
    return found


def merged(places: Sequence[tuple[int, int]], starts: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Return the parts of a text that runs of *size* units cover, overlapping ones as one."""
    parts: list[tuple[int, int]] = []
    for start in starts:
        begin, end = places[start][0], places[start + size - 1][1]
        if parts and begin <= parts[-1][1]:
            parts[-1] = (parts[-1][0], max(end, parts[-1][1]))
        else:
            parts.append((begin, end))
    return parts
