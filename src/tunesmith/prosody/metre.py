"""Metre of regulated verse: the best reading of all its lines at once, by dynamic programming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunesmith.prosody.line_types import Fit, fits
from tunesmith.prosody.readings import LEVEL, OBLIQUE
from tunesmith.prosody.rules import Finding, Rule

# what a departure between lines costs, beside line_types' 10 for a wrong tone
_END, _COUNTER, _ADHESION, _UNPAID = 10.0, 10.5, 10.0, 9.9
_FIRST_RHYMES = 0.05


@dataclass(frozen=True, slots=True)
class Metre:
    """The best reading of the lines: one fit each, what the sequence breaks, and the price of it all."""

    cost: float
    lines: tuple[Fit, ...]
    breaks: tuple[tuple[Rule, int], ...]
    """Rules between lines that are broken, with the line (0-based)."""
    level_rhyme: bool


class _Link(NamedTuple):
    """A linked list, so that states share what came before."""

    item: Any
    before: _Link | None


class _State(NamedTuple):
    """The cheapest way to a line that starts with a given tone and owes, or does not owe, a rescue."""

    cost: float
    fits: _Link | None
    breaks: _Link | None


def find_metre(tones: Sequence[str], *, level_rhyme: bool = True, first_level: bool | None = None) -> Metre:
    """Return the cheapest reading of lines given as tone letters (see :mod:`tunesmith.prosody.readings`).

    State after each line: the tone it starts with, and whether it owes its next line a rescue.  *first_level* settles
    the end of the first line; left out, it may rhyme or not.
    """
    # (starts level, owes) -> the cheapest way there
    states = {(False, False): _State(0.0, None, None)}
    for number, line in enumerate(tones):
        ahead: dict[tuple[bool, bool], _State] = {}
        for fit in fits(line):
            end_price, end_rule = _end(number, fit.level_end, level_rhyme, first_level)
            key = (fit.level_start, fit.shape.owes)
            for (level_start, owed), state in states.items():
                price, rules = _join(number, fit, level_start, owed) if number else (0.0, ())
                total = state.cost + fit.cost + end_price + price
                known = ahead.get(key)
                if known is not None and known.cost <= total:
                    continue
                breaks = state.breaks if end_rule is None else _Link((end_rule, number), state.breaks)
                for rule in rules:
                    breaks = _Link((rule, number - (rule is Rule.GREAT_TWIST)), breaks)
                ahead[key] = _State(total, _Link(fit, state.fits), breaks)
        states = ahead
    best = min((_settled(state, owed, len(tones)) for (_, owed), state in states.items()), key=lambda state: state.cost)
    return Metre(best.cost, tuple(_unlink(best.fits))[::-1], tuple(_unlink(best.breaks))[::-1], level_rhyme)


def _join(number: int, fit: Fit, level_start: bool, owed: bool) -> tuple[float, tuple[Rule, ...]]:
    """Return what it costs that a line follows one that starts with *level_start*, and the rules it breaks."""
    price, rules = 0.0, tuple[Rule, ...]()
    if (fit.level_start == level_start) is (number % 2 == 1):
        price, rules = (_COUNTER, (Rule.COUNTER,)) if number % 2 else (_ADHESION, (Rule.ADHESION,))
    if owed and not fit.shape.pays:
        return price + _UNPAID, (*rules, Rule.GREAT_TWIST)
    return price, rules


def _settled(state: _State, owed: bool, lines: int) -> _State:
    """Return a last state with what it still owes paid."""
    if not owed:
        return state
    return _State(state.cost + _UNPAID, state.fits, _Link((Rule.GREAT_TWIST, lines - 1), state.breaks))


def _end(number: int, level_end: bool, level_rhyme: bool, first_level: bool | None) -> tuple[float, Rule | None]:
    """Return what the end of a line costs, and the rule it breaks."""
    rhymes = level_end == level_rhyme
    if number == 0:
        if first_level is None:
            return (_FIRST_RHYMES if rhymes else 0.0), None
        return (0.0, None) if level_end == first_level else (_END, Rule.UPPER_END)
    if number % 2:
        return (0.0, None) if rhymes else (_END, Rule.RHYME_TONE)
    return (_END, Rule.UPPER_END) if rhymes else (0.0, None)


def _unlink(link: _Link | None) -> Iterator[Any]:
    while link is not None:
        yield link.item
        link = link.before


def metre_findings(metre: Metre, lines: Sequence[str], tones: Sequence[str]) -> Iterator[Finding]:
    """Yield what *metre* says about *lines*, in their order."""
    unpaid = {number for rule, number in metre.breaks if rule is Rule.GREAT_TWIST}
    between: dict[int, list[Rule]] = {}
    for rule, number in metre.breaks:
        if rule is not Rule.GREAT_TWIST:
            between.setdefault(number, []).append(rule)
    for number, (fit, line, letters) in enumerate(zip(metre.lines, lines, tones, strict=True)):
        for rule in between.get(number, ()):
            yield _between(rule, number, fit, line)
        yield from _within(number, fit, line, letters, unpaid=number in unpaid)


def _between(rule: Rule, number: int, fit: Fit, line: str) -> Finding:
    have = LEVEL if fit.level_end else OBLIQUE
    if rule in (Rule.RHYME_TONE, Rule.UPPER_END):
        return Finding(rule, number + 1, len(line), line[-1], OBLIQUE if fit.level_end else LEVEL, have)
    second = LEVEL if fit.level_start == (len(line) == 5) else OBLIQUE
    # a line of one character is measured as if it were unknown, and has no second
    return Finding(rule, number + 1, 2, line[1:2], OBLIQUE if second == LEVEL else LEVEL, second)


def _within(number: int, fit: Fit, line: str, letters: str, *, unpaid: bool) -> Iterator[Finding]:
    for position in fit.wrong:
        want = fit.pattern[position - 1]
        rule = Rule.OFF_TONE
        if position == len(line):
            rule = Rule.UPPER_END if want == OBLIQUE else Rule.RHYME_TONE
        yield Finding(rule, number + 1, position, line[position - 1], want, letters[position - 1])
    for position in fit.rare:
        want = fit.pattern[position - 1]
        usual = LEVEL if want == OBLIQUE else OBLIQUE
        yield Finding(Rule.RARE_READING, number + 1, position, line[position - 1], want, usual)
    if fit.shape.rule is None:
        return
    position = len(line) - 5 + fit.shape.position
    if fit.shape.rule is Rule.GREAT_TWIST and unpaid:
        yield Finding(Rule.OFF_TONE, number + 1, position, line[position - 1], LEVEL, OBLIQUE)
        return
    tone = fit.shape.tones[fit.shape.position - 1]
    yield Finding(fit.shape.rule, number + 1, position, line[position - 1], "", tone)
