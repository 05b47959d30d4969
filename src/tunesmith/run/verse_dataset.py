"""Data sets from verse: poems, ci and couplets become instructions with answers, as Alpaca JSON."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.files import write_json
from tunesmith.core.registry import suggest
from tunesmith.data.cleaning.form import report_of
from tunesmith.data.cleaning.punctuation import marks_by_form
from tunesmith.data.conversation import BadRow, Record
from tunesmith.data.poems import Poem, poem_of, read_poems
from tunesmith.data.similar import find_groups, folded
from tunesmith.data.sources.files import find_files, read_file
from tunesmith.data.verse_tasks import CI_TASKS, COUPLET_TASKS, POEM_TASKS, Task
from tunesmith.prosody import COUPLET, FORMS, ProsodyError, Report, check
from tunesmith.prosody.couplet import halves_of
from tunesmith.prosody.text import split_text

_TOLD = 1000
# poems with so many characters in common, place by place, are versions of one: never one in training, one held out
_SIMILAR = 0.8
# names that collections give the two lines of a couplet
_HALVES = (("u", "l"), ("upper", "lower"), ("上联", "下联"), ("first", "second"), ("input", "output"))


class Genre(StrEnum):
    """What a data set is made from."""

    POEMS = "poems"
    COUPLETS = "couplets"
    CI = "ci"


TASKS: Mapping[Genre, Mapping[str, Task]] = {
    Genre.POEMS: POEM_TASKS,
    Genre.COUPLETS: COUPLET_TASKS,
    Genre.CI: CI_TASKS,
}


@dataclass(frozen=True)
class Wanted:
    """What a data set should be like."""

    genre: Genre
    shares: Mapping[str, float]
    """Kind of instruction -> how often relative to the others."""
    per_poem: int = 1
    """Instructions for each poem, of different kinds."""
    validation: float = 0.0
    """Share of the poems that is held out."""
    strict: bool = False
    """Only verse that breaks no rule of its form."""
    limit: int | None = None
    """At most so many poems, drawn by the seed."""
    seed: int = 0


@dataclass(frozen=True)
class Built:
    """What was built."""

    read: int
    left_out: Counter[str]
    """Reason -> records."""
    kinds: Counter[str]
    train: int
    validation: int
    poems: int
    output: Path
    validation_file: Path | None

    def as_data(self) -> dict[str, Any]:
        """Return the account as JSON-ready data."""
        return {
            "read": self.read,
            "poems": self.poems,
            "left_out": dict(self.left_out.most_common()),
            "kinds": dict(self.kinds.most_common()),
            "train": self.train,
            "validation": self.validation,
            "output": str(self.output),
            "validation_file": str(self.validation_file) if self.validation_file else None,
        }


def read_genre(text: str) -> Genre:
    """Return the genre called *text*; raise :class:`UserError` if there is none."""
    names = [genre.value for genre in Genre]
    if text not in names:
        raise UserError(f"verse data sets are made from {', '.join(names)}; found {text!r}{suggest(text, names)}")
    return Genre(text)


def read_shares(genre: Genre, text: str | None) -> dict[str, float]:
    """Return kind -> share from ``theme=2,acrostic`` (1 where no number is given); all kinds where it is ``None``."""
    tasks = TASKS[genre]
    if text is None:
        return dict.fromkeys(tasks, 1.0) if genre is not Genre.COUPLETS else {"lower": 1.0}
    shares: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = part.partition("=")
        if name not in tasks:
            raise UserError(f"there is no kind {name!r} for {genre}{suggest(name, tasks)}; kinds: {', '.join(tasks)}")
        try:
            shares[name] = float(number) if equals else 1.0
        except ValueError:
            raise UserError(f"{part!r}: the share of a kind is a number, such as {name}=2") from None
        if not 0 < shares[name] < float("inf"):
            raise UserError(f"{part!r}: the share of a kind is more than 0; leave out the kinds you do not want")
    if not shares:
        raise UserError(f"no kind of instruction is named; kinds for {genre}: {', '.join(tasks)}")
    return shares


def build_dataset(
    paths: Sequence[Path], output: Path, wanted: Wanted, *, field: str | None = None, listen: Listener = ignore
) -> Built:
    """Write the instructions made from *paths* to *output*, held-out ones to ``NAME.validation.json`` beside it.

    A poem and its versions stand on one side of the split, whole.  The same seed gives the same files, whatever the
    order of the poems.  Raises :class:`UserError` where nothing is left to write.
    """
    left_out: Counter[str] = Counter()
    having, read = _read(paths, wanted, field, left_out, listen)
    # whatever the order in the files, the same poem comes first in its group
    having.sort(key=lambda found: (folded(found[0].text), found[0].title, found[0].author))
    texts = [folded(poem.text) for poem, _ in having]
    groups = _couplet_groups(texts) if wanted.genre is Genre.COUPLETS else find_groups(texts, _SIMILAR)
    order = sorted(range(len(having)), key=lambda number: _draw(wanted.seed, "order", "/".join(texts[number])))
    train: list[dict[str, str]] = []
    held_out: list[dict[str, str]] = []
    kinds: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    poems = 0
    for number in order:
        if poems == wanted.limit:
            break
        if texts[number] in seen:
            left_out["the same verse again"] += 1
            continue
        seen.add(texts[number])
        examples = _examples(*having[number], wanted, "/".join(texts[number]))
        if not examples:
            left_out["lacks what the kinds of instruction need"] += 1
            continue
        poems += 1
        group = "/".join(texts[groups[number]])
        side = held_out if _draw(wanted.seed, "split", group) < wanted.validation else train
        for kind, example in examples:
            kinds[kind] += 1
            side.append(example)
    return _write(Built(read, left_out, kinds, len(train), len(held_out), poems, output, None), train, held_out, wanted)


def _write(built: Built, train: list[dict[str, str]], held_out: list[dict[str, str]], wanted: Wanted) -> Built:
    if not train:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in built.left_out.most_common())
        raise UserError(f"of {built.read:,} records none became a training example ({reasons or 'all are held out'})")
    if wanted.validation and not held_out:
        raise UserError(f"a share of {wanted.validation:g} holds out none of {built.poems:,} poems; raise --validation")
    write_json(built.output, train)
    if not held_out:
        return built
    path = built.output.with_name(f"{built.output.stem}.validation.json")
    write_json(path, held_out)
    return replace(built, validation_file=path)


def _read(
    paths: Sequence[Path], wanted: Wanted, field: str | None, left_out: Counter[str], listen: Listener
) -> tuple[list[tuple[Poem, Report]], int]:
    """Return the poems that fit, each with its check, and how many records there were."""
    having: list[tuple[Poem, Report]] = []
    try:
        rows = list(_couplets(paths, field) if wanted.genre is Genre.COUPLETS else _poems(paths, field))
        for number, row in enumerate(rows, start=1):
            if number % _TOLD == 0 or number == len(rows):
                listen({"kind": "progress", "task": "checking verse", "done": number, "total": len(rows)})
            fitting = "no verse in the record" if isinstance(row, BadRow) else _fitting(row, wanted)
            if isinstance(fitting, str):
                left_out[fitting] += 1
            else:
                having.append(fitting)
    except ProsodyError as error:
        raise UserError(str(error)) from error
    return having, len(rows)


def _poems(paths: Sequence[Path], field: str | None) -> Iterator[Poem | BadRow]:
    for path in paths:
        yield from read_poems(path, field)


def _couplets(paths: Sequence[Path], field: str | None) -> Iterator[Poem | BadRow]:
    """Yield pairs of lines as poems of two lines."""
    for path in paths:
        for file in find_files(path)[0]:
            if file.suffix.lower() == ".txt":
                yield from read_poems(file)
                continue
            for row in read_file(file):
                yield row if isinstance(row, BadRow) else _couplet_of(row, field)


def _couplet_of(record: Record, field: str | None) -> Poem | BadRow:
    values = record.values
    named = (pair for pair in _HALVES if all(isinstance(values.get(name), str) for name in pair))
    names = None if field else next(named, None)
    if names is None:
        return poem_of(values, record.origin, field)
    return Poem("\n".join(values[name].strip() for name in names), where=str(record.origin))


def _fitting(poem: Poem, wanted: Wanted) -> tuple[Poem, Report] | str:
    """Return a poem, with the marks of its form, and its check; or why it is left out."""
    if poem.lost:
        return "characters are lost"
    report = check(poem.text, COUPLET) if wanted.genre is Genre.COUPLETS else report_of(poem)
    if report is None:
        return "no form that is known"
    if wanted.genre is Genre.POEMS and report.form not in FORMS:
        return "no regulated poem"
    if wanted.genre is Genre.CI and (report.form in (*FORMS, COUPLET) or not poem.tune):
        return "no ci with a tune"
    if wanted.genre is Genre.COUPLETS and len(poem.text.split("\n")) != 2:
        halves = halves_of(split_text(poem.text))
        if halves is None:
            return "no pair of lines"
        poem = replace(poem, text="\n".join("，".join(half) for half in halves))
    if any(str(finding.rule) in ("length", "line_count", "couplet_length") for finding in report.findings):
        return "lengths are not the form's"
    if wanted.strict and not report.strict:
        return "breaks a rule (--strict)"
    if wanted.genre is not Genre.COUPLETS and not set("，。") & set(poem.text):
        poem = replace(poem, text=marks_by_form(poem.text, poem.tune) or poem.text)
    return poem, report


def _examples(poem: Poem, report: Report, wanted: Wanted, key: str) -> list[tuple[str, dict[str, str]]]:
    """Return the instructions about one poem: kinds drawn by their shares, each once."""
    chance = Random(f"{wanted.seed}/{key}")
    tasks = TASKS[wanted.genre]
    # the larger a share, the sooner a kind comes (Efraimidis and Spirakis 2006)
    drawn = sorted(wanted.shares, key=lambda kind: -(chance.random() ** (1 / wanted.shares[kind])))
    found: list[tuple[str, dict[str, str]]] = []
    for kind in drawn:
        example = tasks[kind].example(poem, report, chance)
        if example is not None:
            found.append((kind, example))
        if len(found) == wanted.per_poem:
            break
    return found


def _couplet_groups(texts: Sequence[tuple[str, ...]]) -> list[int]:
    """Return for each couplet the first of those that are linked to it by a line they share."""
    parent = list(range(len(texts)))

    def find(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[str, int] = {}
    for number, clauses in enumerate(texts):
        run = "".join(clauses)
        for half in (run[: len(run) // 2], run[len(run) // 2 :]):
            one, other = find(number), find(first.setdefault(half, number))
            parent[max(one, other)] = min(one, other)
    return [find(number) for number in range(len(texts))]


def _draw(seed: int, purpose: str, key: str) -> float:
    """Return a number in [0, 1) that follows from seed and verse alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
