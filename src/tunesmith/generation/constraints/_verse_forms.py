"""Forms of verse as graphs: a node asks for one character, its followers for the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tunesmith.core.errors import UserError
from tunesmith.generation.constraints._verse_characters import ALWAYS_BOTH
from tunesmith.prosody.couplet import PARTICLES, opposed_places
from tunesmith.prosody.line_types import SHAPES, Shape
from tunesmith.prosody.pattern import NO_RHYME, Pattern
from tunesmith.prosody.readings import BOTH, LEVEL, OBLIQUE, Readings
from tunesmith.prosody.rules import Severity, rule_texts
from tunesmith.prosody.text import LOST, is_han

END = -1
"""The follower of the last character."""
_OPPOSITE = {LEVEL: OBLIQUE, OBLIQUE: LEVEL}


class Slot(NamedTuple):
    """What one node asks: a mark as it is, or a character."""

    tone: str = BOTH
    rhyme: int = NO_RHYME
    """Number of the rhyme that the character belongs to."""
    mark: str = ""
    place: int = -1
    """Of a couplet: the place of the character in its line, 0-based."""


@dataclass
class Graph:
    """A form: its nodes, where it begins, and what it takes to complete it."""

    slots: list[Slot] = field(default_factory=list)
    followers: list[tuple[int, ...]] = field(default_factory=list)
    starts: tuple[int, ...] = ()

    def add(self, slot: Slot, followers: tuple[int, ...]) -> int:
        """Add a node and return its number."""
        self.slots.append(slot)
        self.followers.append(followers)
        return len(self.slots) - 1

    def add_run(self, slots: Sequence[Slot], followers: tuple[int, ...]) -> tuple[int, ...]:
        """Add nodes that follow one another and return the first of them; *followers* come after the last."""
        for slot in reversed(slots):
            followers = (self.add(slot, followers),)
        return followers

    def one_way(self) -> list[Slot]:
        """Return the slots of one way through the graph; all ways are of one length."""
        found, nodes = [], self.starts
        while nodes and nodes[0] != END:
            found.append(self.slots[nodes[0]])
            nodes = self.followers[nodes[0]]
        return found

    def rhymes(self) -> dict[int, tuple[str, ...]]:
        """Return the number of each rhyme -> the tones of its words, on the way that has most of them."""
        most: dict[int, dict[int, tuple[str, ...]]] = {END: {}}
        for node, slot in enumerate(self.slots):  # followers were added before
            most[node] = _most_words(most[follower] for follower in self.followers[node])
            if slot.rhyme != NO_RHYME:
                most[node][slot.rhyme] = (slot.tone, *most[node].get(slot.rhyme, ()))
        return _most_words(most[start] for start in self.starts)


def _most_words(found: Iterable[dict[int, tuple[str, ...]]]) -> dict[int, tuple[str, ...]]:
    most: dict[int, tuple[str, ...]] = {}
    for each in found:
        for number, words in each.items():
            most[number] = max(most.get(number, ()), words, key=len)
    return dict(sorted(most.items()))


def marks(text: str) -> list[Slot]:
    """Return slots for the characters of *text*."""
    return [Slot(mark=character) for character in text]


@dataclass(frozen=True)
class RegulatedPlan:
    """Which of the patterns of regulated verse a poem may follow."""

    length: int
    """Characters a line."""
    lines: int
    start: str = BOTH
    """Tone of the second character (平起, 仄起)."""
    first_rhymes: bool | None = None


def regulated(plan: RegulatedPlan, line_ends: Sequence[str]) -> Graph:
    """Return every pattern of a regulated poem that breaks no rule: each line type, with its 拗救."""
    graph, ends = Graph(), ends_of(line_ends, plan.lines)
    for level_start, first_level in ((True, True), (True, False), (False, True), (False, False)):
        second = LEVEL if level_start == (plan.length == 5) else OBLIQUE
        if plan.start not in (BOTH, second) or plan.first_rhymes not in (None, first_level):
            continue
        # what may follow a line that owes a level third character, or does not; what is owed at the end stays unpaid
        later: dict[bool, tuple[int, ...]] = {False: (END,), True: ()}
        for number in range(plan.lines - 1, -1, -1):
            # 对 and 粘: the second line starts otherwise than the first, the third like the second, and so on
            starts_level = level_start ^ ((number + 1) // 2 % 2 == 1)
            ends_level = number % 2 == 1 if number else first_level
            shapes = [shape for shape in SHAPES[starts_level, ends_level] if _is_clean(shape) and later[shape.owes]]
            prefix = "" if plan.length == 5 else BOTH + (OBLIQUE if starts_level else LEVEL)
            firsts: dict[bool, tuple[int, ...]] = {False: (), True: ()}
            for shape in shapes:
                slots = [Slot(tone) for tone in prefix + shape.tones.replace("·", BOTH)]
                slots[-1] = Slot(slots[-1].tone, rhyme=0 if ends_level else NO_RHYME)
                first = graph.add_run([*slots, *marks(ends[number])], later[shape.owes])
                firsts[False] += first
                firsts[True] += first if shape.pays else ()
            later = firsts
        graph.starts += later[False]
    return graph


def _is_clean(shape: Shape) -> bool:
    return shape.rule is None or rule_texts()[shape.rule].severity is Severity.NOTE


def ends_of(line_ends: Sequence[str], lines: int) -> list[str]:
    """Return what stands after each of *lines*: *line_ends* in turn, without a line break at the very end."""
    ends = [line_ends[number % len(line_ends)] for number in range(lines)]
    ends[-1] = ends[-1].rstrip()
    return ends


def patterned(pattern: Pattern, line_ends: Sequence[str]) -> Graph:
    """Return a pattern as a graph; without *line_ends* a rhyme ends a sentence and another line a clause."""
    graph = Graph()
    last = len(pattern.lines) - 1
    usual = ["。" if rhyme != NO_RHYME or number == last else "，" for number, rhyme in enumerate(pattern.rhymes)]
    ends = ends_of(line_ends, len(pattern.lines)) if line_ends else usual
    slots = []
    for line, rhyme, end in zip(pattern.lines, pattern.rhymes, ends, strict=True):
        slots += [Slot(tone) for tone in line[:-1]] + [Slot(line[-1], rhyme), *marks(end)]
    graph.starts = graph.add_run(slots, (END,))
    return graph


def upper_graph(lengths: Sequence[int], line_ends: Sequence[str]) -> Graph:
    """Return the upper line of a couplet with clauses of these lengths: all free, the end oblique."""
    graph, slots, place = Graph(), list[Slot](), 0
    for number, length in enumerate(lengths):
        slots += [Slot(place=place + index) for index in range(length)]
        place += length
        last = number == len(lengths) - 1
        if last:
            slots[-1] = Slot(OBLIQUE, place=place - 1)
        slots += marks(line_ends[0] if last else "，")
    graph.starts = graph.add_run(slots, (END,))
    return graph


class LowerLine(NamedTuple):
    """What the lower line of a couplet owes the upper one."""

    graph: Graph
    above: str
    """The characters that stand above each place."""
    echoes: tuple[int, ...]
    """For each place the first one that the upper line has the same character at."""

    def may_repeat(self, place: int) -> bool:
        """Say whether the same character may stand in both lines at *place*."""
        return self.above[place] in PARTICLES


def lower_line(upper: str, end: str, readings: Sequence[Readings]) -> LowerLine:
    """Return what follows from an upper line with its marks; its last mark becomes *end*.

    *readings* are those of both scripts: which one the pair is written in shows only when it is complete.  Raises
    :class:`UserError` for what is no upper line.
    """
    body = upper.strip("，。；、：！？,.;:!? \n")
    above = "".join(character for character in body if is_han(character))
    odd = [c for c in body if c in LOST or (c.isalnum() and not is_han(c))]
    if not above or odd:
        what = f"{''.join(odd)!r} is not Chinese" if odd else "there is no Chinese character"
        raise UserError(f"the lower line of a couplet is written to an upper one, and in {upper!r} {what}")
    clauses = "".join(character if is_han(character) else " " for character in body).split()
    # tones that any of the letters of the upper line leaves only one of
    letters = [set(group) for group in zip(*(each.tones(above) for each in readings), strict=True)]
    wanted: list[set[str]] = [set() for _ in above]
    echoes = tuple(above.index(character) for character in above)
    for place in opposed_places(clauses):
        wanted[echoes[place]] |= {_OPPOSITE[letter] for letter in letters[place] if letter in _OPPOSITE}
    wanted[echoes[-1]].add(LEVEL)
    tones = {place: _one_tone(wanted[place]) for place in range(len(above))}
    slots, place = list[Slot](), 0
    for character in body:
        if is_han(character):
            slots.append(Slot(tones[echoes[place]], place=place))
            place += 1
        else:
            slots.append(Slot(mark=character))
    graph = Graph()
    graph.starts = graph.add_run([*slots, *marks(end)], (END,))
    return LowerLine(graph, above, echoes)


def _one_tone(wanted: set[str]) -> str:
    """Return the tone that satisfies all demands on one character."""
    return BOTH if not wanted else wanted.copy().pop() if len(wanted) == 1 else ALWAYS_BOTH
