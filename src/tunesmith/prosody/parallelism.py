"""Parallelism (对仗): how well the characters of two lines face one another.

Learnt from Tang and Song couplets: the smoothed pointwise mutual information of facing characters, as vectors whose
weighted product gives it back (``bench/prosody/build_parallelism.py``).  No tagger, no word list.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from tunesmith.prosody.readings import guangyun

if TYPE_CHECKING:
    import numpy as np


class Table(NamedTuple):
    """What was learnt."""

    number: dict[str, int]
    vectors: np.ndarray
    """Float, [characters, dimensions]."""
    weighted: np.ndarray
    """The same, times the weight of each dimension."""
    mean: float
    """Information of one facing pair in lines put together at random."""
    deviation: float


@cache
def table() -> Table:
    """Return the table of the package, read once."""
    import numpy as np

    with (files("tunesmith.prosody") / "data" / "parallelism.npz").open("rb") as file, np.load(file) as arrays:
        number = {character: index for index, character in enumerate(str(arrays["characters"][0]))}
        vectors = arrays["vectors"].astype(np.float32)
        mean, deviation = arrays["chance"].tolist()
        weighted = vectors * arrays["weights"]
    for simplified, sources in guangyun().stands_for.items():
        if simplified in number:
            for source in sources:
                number.setdefault(source, number[simplified])
    return Table(number, vectors, weighted, mean, deviation)


def facing(above: str, below: str) -> list[float | None]:
    """Return for each place how much oftener than by chance the two characters face one another (log, base e).

    ``None`` where one of them is too rare to know.  Lines are of equal length.
    """
    known = table()
    pairs = [(known.number.get(one), known.number.get(other)) for one, other in zip(above, below, strict=True)]
    return [
        None if one is None or other is None else float(known.weighted[one] @ known.vectors[other])
        for one, other in pairs
    ]


def parallelism(above: str, below: str) -> float:
    """Return the mean information of the facing characters; 0 where none is known."""
    known = [value for value in facing(above, below) if value is not None]
    return sum(known) / len(known) if known else 0.0


def percentile(above: str, below: str) -> float | None:
    """Return the share of randomly matched lines that this pair beats; ``None`` if too few characters are known."""
    known = [value for value in facing(above, below) if value is not None]
    if len(known) * 2 < len(above) or not known:
        return None
    chance = table()
    surprise = (sum(known) / len(known) - chance.mean) * math.sqrt(len(known)) / chance.deviation
    return 0.5 * math.erfc(-surprise / math.sqrt(2))
