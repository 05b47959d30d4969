"""Ci (词): verse written to tunes, each with its own lengths, tones and rhymes.

The patterns are the majority's of the Song ci that have the same lengths (``bench/prosody/build_ci.py``).
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from functools import cache
from importlib.resources import files

from tunesmith.prosody.errors import ProsodyError
from tunesmith.prosody.pattern import Pattern, check_pattern
from tunesmith.prosody.readings import Readings
from tunesmith.prosody.report import Report
from tunesmith.prosody.text import Text

# shorter texts are couplets sooner than ci
_FEWEST_CLAUSES = 5


@cache
def tunes() -> dict[str, tuple[Pattern, ...]]:
    """Return tune -> its forms, the commonest first; other names of a tune are keys too."""
    found: dict[str, list[Pattern]] = defaultdict(list)
    others: dict[str, str] = {}
    text = (files("tunesmith.prosody") / "data" / "ci.txt").read_text("utf-8")
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, kind, value = line.split(" ")
        if kind == "=":
            others[name] = value
        else:
            found[name].append(Pattern.parse(value, name))
    known = {name: tuple(patterns) for name, patterns in found.items()}
    return known | {name: known[tune] for name, tune in others.items()}


@cache
def _by_lengths() -> dict[tuple[int, ...], tuple[str, ...]]:
    """Return lengths of the clauses -> tunes that have them."""
    by_lengths: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, patterns in tunes().items():
        for pattern in patterns:
            if pattern.name == name:
                by_lengths[tuple(map(len, pattern.lines))].append(name)
    return {lengths: tuple(dict.fromkeys(names)) for lengths, names in by_lengths.items()}


def find_tune(name: str) -> tuple[Pattern, ...]:
    """Return the forms of a tune; :class:`ProsodyError` names the nearest if there is none of that name."""
    known = tunes()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    hint = f", perhaps {', '.join(near)}" if near else ""
    raise ProsodyError(
        f"form {name!r} is not known: neither 五绝, 七绝, 五律, 七律, 五言排律, 七言排律, 对联 nor a tune{hint}"
    )


def recognise_tune(text: Text) -> str | None:
    """Return the tune that stands above the text, or the one whose lengths it has."""
    if len(text.clauses) > 1 and text.clauses[0] in tunes():
        return text.clauses[0]
    if len(text.clauses) < _FEWEST_CLAUSES:
        return None
    names = _by_lengths().get(tuple(map(len, text.clauses)), ())
    return names[0] if names else None


def check_tune(text: Text, name: str, readings: Readings) -> Report:
    """Check a text against the form of the tune that it comes nearest to."""
    forms = find_tune(name)
    if len(text.clauses) > 1 and text.clauses[0] in tunes() and len(text.clauses[0]) != len(forms[0].lines[0]):
        heading = text.clauses[0]
        text = Text(text.clauses[1:], tuple(sentence for sentence in text.sentences if sentence != (heading,)))
    lengths = tuple(map(len, text.clauses))
    same = [form for form in forms if tuple(map(len, form.lines)) == lengths]
    same = same or [form for form in forms if sum(map(len, form.lines)) == sum(lengths)]
    reports = [check_pattern(text, form, readings) for form in same or forms[:1]]
    return min(reports, key=lambda report: sum(finding.severity != "note" for finding in report.findings))
