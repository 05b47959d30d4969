"""Writing a verse token by token: where one is in its form, and what may come next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.core.errors import UserError
from tunesmith.generation.constraints._base import Walk
from tunesmith.generation.constraints._verse_characters import ANY_GROUP, OPEN, Ask
from tunesmith.generation.constraints._verse_forms import END, Graph, LowerLine, Slot, lower_line
from tunesmith.generation.constraints._verse_tokens import HAN, MARK, cut_bytes
from tunesmith.prosody.pattern import NO_RHYME
from tunesmith.prosody.readings import BOTH, LEVEL, OBLIQUE, readings_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.generation.constraints._verse_tokens import Excluded, Mask, VerseTokens, Window

Path = tuple[int, ...]
"""Nodes that follow one another."""
Asked = tuple["Window", tuple[int, ...]]
"""What is asked along a path, and which rhyme each character is of, up to the last that is of any."""
_NONE: frozenset[str] = frozenset()


@dataclass(eq=False)
class Form:
    """A form that answers are held to, with the vocabulary they are written in; shared by all walks through it."""

    graph: Graph
    tokens: VerseTokens
    lower: LowerLine | None = None
    """For the lower line of a couplet: what stands above it."""
    upper_lengths: tuple[int, ...] = ()
    """For the upper line of a couplet: the lengths of its clauses; a lower line follows."""
    end: str = ""
    """What stands after the lower line that follows."""
    groups: tuple[int, ...] = ()
    """For each rhyme the groups that it may be of, as bits."""
    _paths: dict[tuple[Path, bool], tuple[Path, ...]] = field(default_factory=dict)
    _ahead: dict[tuple[Path, bool], tuple[int, ...]] = field(default_factory=dict)
    _asks: dict[tuple[object, ...], tuple[Asked, ...]] = field(default_factory=dict)

    @property
    def is_couplet(self) -> bool:
        """Whether characters matter to one another beyond tones and rhymes."""
        return self.lower is not None or bool(self.upper_lengths)

    def check(self) -> None:
        """Raise :class:`UserError` where the vocabulary cannot write what the form asks for."""
        slots = set(self.graph.slots)
        for slot in slots:
            if slot.mark and not self.tokens.can_write(slot.mark):
                raise UserError(f"this tokenizer cannot write {slot.mark!r}, which the form asks for")
        tones = {slot.tone for slot in slots if not slot.mark} | ({LEVEL, OBLIQUE} if self.is_couplet else set())
        # no character of a couplet returns where it should not: as many as there are places must be left over
        needed = 2 * len({slot.place for slot in slots if not slot.mark}) if self.is_couplet else 1
        for tone in sorted(tones):
            found = self.tokens.count(tone)
            if found < needed:
                kind = "Chinese characters" if tone == BOTH else f"characters that are surely {tone}"
                raise UserError(f"this tokenizer can write {found} {kind}, and the form needs {needed}")

    def rich_groups(self, number: int, among: int) -> int:
        """Return those of the rhyme groups *among*, as bits, that have words enough for rhyme *number*.

        Raises :class:`UserError` where none has.
        """
        words = self.graph.rhymes()[number]
        book = self.tokens.characters.book
        counts = {
            name: min(self.tokens.count_in(1 << group, tone) for tone in set(words))
            for group, name in enumerate(book.groups)
            if among >> group & 1
        }
        left = sum(1 << book.groups.index(name) for name, count in counts.items() if count >= len(words))
        if not left:
            name = max(counts, key=lambda each: counts[each])
            raise UserError(
                f"the form has {len(words)} words of one rhyme ({'、'.join(sorted(set(words)))}), and this tokenizer "
                f"can write {counts[name]} that surely rhyme in {book.name} {name}"
                + ("" if len(counts) == 1 else ", where it has most")
            )
        return left

    @cached_property
    def longest(self) -> int:
        """The most tokens that the form can take."""
        tokens = sum(self.tokens.most_tokens(slot.mark) for slot in self.graph.one_way())
        space = self.tokens.vocabulary.leading_space
        return space + (2 * tokens + len(self.end.encode()) if self.upper_lengths else tokens)

    def paths(self, nodes: Path, *, headed: bool) -> tuple[Path, ...]:
        """Return the ways on from *nodes*, as far as one token of the vocabulary may reach.

        *headed*: the first character has begun, so only tokens that go on with it count.
        """
        known = self._paths.get((nodes, headed))
        if known is None:
            skeletons = self.tokens.headed_skeletons if headed else self.tokens.skeletons
            found = [path for node in nodes for path in self._paths_from(node, "", skeletons, rhymed=False)]
            known = self._paths[nodes, headed] = tuple(dict.fromkeys(found))
        return known

    def asks(self, nodes: Path, groups: tuple[int, ...], *, headed: bool) -> tuple[Asked, ...]:
        """Return what is asked along each way on from *nodes*."""
        ahead = self._ahead.get((nodes, headed))
        if ahead is None:
            numbers = {self.graph.slots[node].rhyme for path in self.paths(nodes, headed=headed) for node in path}
            ahead = self._ahead[nodes, headed] = tuple(sorted(numbers - {NO_RHYME}))
        key = (nodes, headed, *[groups[number] for number in ahead])
        known = self._asks.get(key)
        if known is None:
            found: dict[Asked, None] = {}
            for path in self.paths(nodes, headed=headed):
                slots = [self.graph.slots[node] for node in path]
                rhymes = [slot.rhyme for slot in slots]
                last = max((place for place, rhyme in enumerate(rhymes, 1) if rhyme != NO_RHYME), default=0)
                bits = [ANY_GROUP if rhyme == NO_RHYME else groups[rhyme] for rhyme in rhymes]
                window = tuple(Ask(slot.tone, each, slot.mark) for slot, each in zip(slots, bits, strict=True))
                found[window, tuple(rhymes[:last])] = None
            known = self._asks[key] = tuple(found)
        return known

    def _paths_from(self, node: int, before: str, skeletons: frozenset[str], *, rhymed: bool) -> list[Path]:
        if node == END:
            return [()]
        slot = self.graph.slots[node]
        skeleton = before + (MARK if slot.mark else HAN)
        rhymes = slot.rhyme != NO_RHYME
        # a second rhyme word is another token's: it depends on the first
        if before and (skeleton not in skeletons or (rhymes and rhymed)):
            return [()]
        return [
            (node, *path)
            for follower in self.graph.followers[node]
            for path in self._paths_from(follower, skeleton, skeletons, rhymed=rhymes or rhymed)
        ]


@dataclass(frozen=True, slots=True)
class VerseWalk(Walk):
    """A place in a verse."""

    form: Form
    nodes: Path
    """Where the next character may stand; several while several patterns are possible."""
    groups: tuple[int, ...] = ()
    """For each rhyme the groups it may still be of, as bits."""
    rhymed: tuple[frozenset[str], ...] = ()
    """For each rhyme its words so far."""
    written: str = ""
    """Of a couplet: the characters of this line so far."""
    pending: bytes = b""
    """The bytes of a character that is not complete."""

    @property
    def finished(self) -> bool:
        return self.nodes == (END,)

    @property
    def longest(self) -> int:
        return self.form.longest

    def allowed(self) -> Mask:
        tokens = self.form.tokens
        if self.finished:
            return np.zeros(tokens.vocabulary.size, dtype=np.bool_)
        asked = self._couplet_asks() if self.form.is_couplet else self._verse_asks()
        if not any(excluded for _, excluded in asked):
            mask = tokens.union([window for window, _ in asked], self.pending)
        else:
            mask = np.logical_or.reduce([tokens.mask(window, self.pending, excluded) for window, excluded in asked])
        if self.form.is_couplet:
            mask[tokens.repeating] = False
        return mask

    def _verse_asks(self) -> list[tuple[Window, Excluded]]:
        """Return what is asked along each way on, and what words have rhymed there already."""
        return [
            (window, tuple(self.rhymed[number] if number != NO_RHYME else _NONE for number in rhymes))
            if any(number != NO_RHYME and self.rhymed[number] for number in rhymes)
            else (window, ())
            for window, rhymes in self.form.asks(self.nodes, self.groups, headed=bool(self.pending))
        ]

    def _couplet_asks(self) -> list[tuple[Window, Excluded]]:
        """Return what is asked along each way on, and what may not stand there."""
        asked = []
        for path in self.form.paths(self.nodes, headed=bool(self.pending)):
            window, excluded = list[Ask](), list[frozenset[str]]()
            for node in path:
                slot = self.form.graph.slots[node]
                ask = self._ask(slot)
                if ask is None:
                    break
                window.append(ask)
                excluded.append(self._excluded(slot))
            asked.append((tuple(window), tuple(excluded)))
        return asked

    def advance(self, token: int) -> Walk:
        spelling = self.form.tokens.vocabulary.spellings[token]
        head, whole, tail = cut_bytes(self.pending + spelling)
        try:
            text = whole.decode()
        except UnicodeDecodeError:
            text = ""
        walk = self
        for character in text:
            walk = walk._step(character)
        in_parts = self.form.tokens.in_parts
        if (
            not spelling
            or head
            or bool(text) != bool(whole)
            or not walk.nodes
            or (self.pending and text and not in_parts(text[0].encode()))
            or (tail and not any(replace(walk, pending=tail)._may_begin(node) for node in walk.nodes))
        ):
            raise ValueError(f"token {token} ({spelling!r}) cannot follow {self.written + repr(self.pending)} here")
        if walk.finished and walk.form.upper_lengths:
            return walk._next_line()
        return replace(walk, pending=tail)

    def _next_line(self) -> VerseWalk:
        """Return the walk at the beginning of the lower line, after the upper one."""
        lengths = self.form.upper_lengths
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        upper = "，".join(self.written[start : start + length] for start, length in zip(starts, lengths, strict=True))
        return start_lower_line(self.form.tokens, upper, self.form.end, begins=False)

    # --- one character

    def _ask(self, slot: Slot) -> Ask | None:
        """Return what is asked at a slot; ``None`` where that depends on a character which is not written."""
        if slot.mark:
            return Ask(mark=slot.mark)
        if slot.rhyme != NO_RHYME:
            return Ask(slot.tone, self.groups[slot.rhyme])
        lower = self.form.lower
        if lower is not None and lower.echoes[slot.place] != slot.place:
            first = lower.echoes[slot.place]
            return Ask(mark=self.written[first]) if first < len(self.written) else None
        return Ask(slot.tone)

    def _excluded(self, slot: Slot) -> frozenset[str]:
        """Return the characters that may not stand at a slot although they are what it asks for."""
        if slot.mark:
            return frozenset()
        if slot.rhyme != NO_RHYME:
            return self.rhymed[slot.rhyme]
        lower = self.form.lower
        if lower is not None:
            if lower.echoes[slot.place] != slot.place:
                return frozenset()
            above = () if lower.may_repeat(slot.place) else (lower.above[slot.place],)
            return frozenset((*self.written, *above))
        if self.form.upper_lengths:
            # a character that means one tone here and the other there could not be answered by one character
            return frozenset(c for c in self.written if self.form.tokens.characters.tone(c) == OPEN)
        return frozenset()

    def _may_begin(self, node: int) -> bool:
        if node == END:
            return False
        slot = self.form.graph.slots[node]
        ask = self._ask(slot)
        return ask is not None and self.form.tokens.begins(self.pending, ask, self._excluded(slot))

    def _step(self, character: str) -> VerseWalk:
        """Return the walk after one character; it has no nodes where that may not stand here."""
        fits = self.form.tokens.characters.fits
        nodes: dict[int, None] = {}
        taken = Slot()
        for node in self.nodes:
            if node == END:
                continue
            slot = self.form.graph.slots[node]
            ask = self._ask(slot)
            if ask is not None and fits(character, ask) and character not in self._excluded(slot):
                taken = slot
                nodes.update(dict.fromkeys(self.form.graph.followers[node]))
        groups, rhymed = self.groups, self.rhymed
        if nodes and taken.rhyme != NO_RHYME:
            group = self.form.tokens.characters.group(character, taken.tone)
            groups = _chosen(groups, taken.rhyme, group)
            rhymed = tuple(
                words | {character} if number == taken.rhyme else words for number, words in enumerate(rhymed)
            )
        written = self.written + character if taken.place >= 0 else self.written
        return VerseWalk(self.form, tuple(nodes), groups, rhymed, written)


def _chosen(groups: tuple[int, ...], number: int, group: int) -> tuple[int, ...]:
    """Return the groups that are left when rhyme *number* is of *group*: a rhyme that is still open becomes another."""
    return tuple(
        group if place == number else bits if bits.bit_count() == 1 else bits & ~group or bits
        for place, bits in enumerate(groups)
    )


def start_lower_line(tokens: VerseTokens, upper: str, end: str, *, begins: bool) -> VerseWalk:
    """Return the walk at the beginning of the lower line to *upper*; it ends with *end*, and may begin the answer."""
    book = tokens.characters.book
    lower = lower_line(upper, end, [readings_in(book, simplified=simplified) for simplified in (True, False)])
    if begins:
        allow_space(lower.graph, tokens)
    form = Form(lower.graph, tokens, lower)
    form.check()
    return VerseWalk(form, form.graph.starts)


def allow_space(graph: Graph, tokens: VerseTokens) -> None:
    """Let an answer begin with a space where the tokenizer writes one before each text."""
    if tokens.vocabulary.leading_space and tokens.can_write(" "):
        graph.starts += (graph.add(Slot(mark=" "), graph.starts),)


def start_verse(form: Form, groups: Sequence[int]) -> VerseWalk:
    """Return the walk at the beginning of *form* whose rhymes are of *groups*, as bits."""
    return VerseWalk(form, form.graph.starts, tuple(groups), (frozenset(),) * len(groups))
