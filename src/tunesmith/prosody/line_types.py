"""The four types of regulated line, and how well a line of known tones fits each."""

from dataclasses import dataclass
from functools import lru_cache

from tunesmith.prosody.readings import BOTH, LEVEL, LEVEL_RARELY_OBLIQUE, OBLIQUE, OBLIQUE_RARELY_LEVEL, UNKNOWN
from tunesmith.prosody.rules import Rule

# what a departure costs; only the order matters: doubtful readings < tolerated faults < wrong tones
_RARE, _TWIST, _TAIL, _LONE, _WRONG = 2.0, 0.1, 8.0, 9.0, 10.0
_NEVER = 1000.0

_ALLOWED: dict[str, dict[str, float]] = {
    LEVEL: {LEVEL: 0, OBLIQUE: _WRONG},
    OBLIQUE: {LEVEL: _WRONG, OBLIQUE: 0},
    BOTH: {LEVEL: 0, OBLIQUE: 0},
    UNKNOWN: {LEVEL: 0, OBLIQUE: 0},
    LEVEL_RARELY_OBLIQUE: {LEVEL: 0, OBLIQUE: _RARE},
    OBLIQUE_RARELY_LEVEL: {LEVEL: _RARE, OBLIQUE: 0},
}


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to fill a line type: five tones (``·`` is free), its price, and what is remarkable about it."""

    tones: str
    cost: float = 0.0
    rule: Rule | None = None
    """Remark or fault that this shape is."""
    position: int = 0
    """Of the five, the one that the rule is about (1-based); 0 for none."""
    owes: bool = False
    """A level third character is owed by the next line (大拗)."""
    pays: bool = False
    """Has the level third character that rescues the line above."""


# (starts level?, ends level?) -> shapes, plainest first; "starts" is the tone of the second of the last five
SHAPES: dict[tuple[bool, bool], tuple[Shape, ...]] = {
    (False, False): (  # 仄仄平平仄
        Shape("·仄平平仄"),
        Shape("·仄仄平仄", _TWIST, Rule.SMALL_TWIST, 3),
        Shape("·仄·仄仄", _TWIST * 3, Rule.GREAT_TWIST, 4, owes=True),
    ),
    (True, True): (  # 平平仄仄平
        Shape("平平仄仄平"),
        Shape("平平平仄平", pays=True),
        Shape("仄平平仄平", _TWIST, Rule.SELF_RESCUE, 3, pays=True),
        Shape("仄平仄仄平", _LONE, Rule.LONE_LEVEL, 1),
    ),
    (True, False): (  # 平平平仄仄
        Shape("·平平仄仄"),
        Shape("·平仄仄仄", _TWIST, Rule.THREE_OBLIQUE, 3),
        Shape("平平仄平仄", _TWIST, Rule.SWAPPED, 3),
        Shape("仄平仄平仄", _TWIST * 2, Rule.SWAPPED, 3),
    ),
    (False, True): (  # 仄仄仄平平
        Shape("·仄仄平平"),
        Shape("·仄平平平", _TAIL, Rule.THREE_LEVEL, 3),
    ),
}


@dataclass(frozen=True, slots=True)
class Fit:
    """A line read as one type: the price, the tones it is read with, and what is wrong or remarkable."""

    cost: float
    level_start: bool
    level_end: bool
    shape: Shape
    pattern: str
    """What the type asks for, ``中`` where it leaves the choice."""
    wrong: tuple[int, ...]
    """Positions (1-based) whose tone the type forbids."""
    rare: tuple[int, ...]
    """Positions that fit by a rare reading only."""


@lru_cache(maxsize=65536)
def fits(tones: str) -> tuple[Fit, ...]:
    """Return the best fits of a line of five or seven tone letters, at most two a type (owing or paying, and not)."""
    found: list[Fit] = []
    for level_start, level_end in SHAPES:
        best: dict[tuple[bool, bool], Fit] = {}
        for shape in SHAPES[level_start, level_end]:
            fit = _fit(tones, level_start, level_end, shape)
            known = best.get((shape.owes, shape.pays))
            if known is None or fit.cost < known.cost:
                best[shape.owes, shape.pays] = fit
        found += best.values()
    return tuple(found)


def _fit(tones: str, level_start: bool, level_end: bool, shape: Shape) -> Fit:
    prefix = ("·仄" if level_start else "·平") if len(tones) == 7 else ""
    wanted = prefix + shape.tones
    cost, wrong, rare = shape.cost, [], []
    for position, (want, have) in enumerate(zip(wanted, tones, strict=True), start=1):
        if want == "·":
            continue
        price = _ALLOWED[have][want]
        cost += price
        if price == _WRONG:
            wrong.append(position)
        elif price:
            rare.append(position)
    # a wrong tone where only the shape, not the type, asks for one is that shape's fault: another shape fits better
    binding = len(tones) - 5
    if any(position - binding in (1, 3) for position in wrong):
        cost += _NEVER
    return Fit(cost, level_start, level_end, shape, wanted.replace("·", BOTH), tuple(wrong), tuple(rare))
