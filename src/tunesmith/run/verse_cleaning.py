"""Cleaning verse: files in, steps over their poems, one clean file out, and what was dropped beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.files import write_text
from tunesmith.core.registry import suggest
from tunesmith.data.cleaning import CLEANERS, USUAL, Cleaner, Log
from tunesmith.data.conversation import BadRow
from tunesmith.data.poems import Poem, read_poems
from tunesmith.prosody import ProsodyError

_TOLD = 500


@dataclass(frozen=True)
class Cleaned:
    """What came of a cleaning."""

    read: int
    """Records, readable or not."""
    bad: tuple[BadRow, ...]
    kept: int
    steps: tuple[tuple[str, Log], ...]
    output: Path
    dropped: Path | None
    """File of the dropped records, each with its reason; ``None`` where nothing was dropped."""

    @property
    def num_dropped(self) -> int:
        """How many poems the steps left out."""
        return sum(len(log.dropped) for _, log in self.steps)

    def as_data(self) -> dict[str, Any]:
        """Return counts and examples as JSON-ready data."""
        return {
            "read": self.read,
            "unreadable": len(self.bad),
            "kept": self.kept,
            "dropped": self.num_dropped,
            "output": str(self.output),
            "dropped_file": str(self.dropped) if self.dropped else None,
            "steps": [
                {
                    "step": name,
                    "counts": dict(log.counts.most_common()),
                    "dropped": len(log.dropped),
                    "examples": {
                        what: [{"where": e.where, "before": e.before, "after": e.after} for e in shown]
                        for what, shown in log.examples.items()
                    },
                }
                for name, log in self.steps
            ],
        }


def make_steps(names: Sequence[str] = (), changes: Sequence[str] = ()) -> list[Cleaner]:
    """Return the steps of these *names* (the usual ones if there are none), with ``step.setting=value`` *changes*.

    Raises :class:`UserError` for a step or setting that is not known.
    """
    chosen = list(names) or list(USUAL)
    settings: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for change in changes:
        key, equals, value = change.partition("=")
        step, dot, setting = key.partition(".")
        if not (equals and dot and setting):
            raise UserError(f"{change!r} is no change of a step; write step.setting=value, such as lost.action=drop")
        if step not in settings:
            raise UserError(f"{change!r}: the step {step!r} is not taken; steps are {', '.join(chosen)}")
        settings[step][setting] = value
    steps = []
    for name, values in settings.items():
        try:
            steps.append(CLEANERS.get(name).model_validate(values))
        except ValidationError as error:
            raise UserError(_explain(name, values, error)) from error
    return steps


def _explain(step: str, values: dict[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    setting = str(first["loc"][0])
    known = list(CLEANERS.get(step).model_fields)
    if setting not in known:
        return f"{step} has no setting {setting!r}{suggest(setting, known)}; it has {', '.join(known) or 'none'}"
    return f"{step}.{setting}={values[setting]}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def clean_files(
    paths: Sequence[Path],
    output: Path,
    steps: Sequence[Cleaner],
    *,
    field: str | None = None,
    listen: Listener = ignore,
) -> Cleaned:
    """Clean the poems of *paths* and write them to *output* as JSON lines.

    What is dropped goes to ``NAME.dropped.jsonl`` beside it, each record with step and reason; records without verse
    too.  Raises :class:`UserError` where nothing can be read or written.
    """
    dropped_file = output.with_name(f"{output.name.removesuffix('.jsonl')}.dropped.jsonl")
    if any(path.resolve() in (output.resolve(), dropped_file.resolve()) for path in paths):
        raise UserError(f"{output} would overwrite what is read; name another file")
    poems, bad = read_all(paths, field, listen)
    read = len(poems) + len(bad)
    logs = []
    for step in steps:
        log = Log()
        poems = list(step.clean(_told(poems, step.type_name(), listen), log))
        logs.append((step.type_name(), log))
    write_text(output, "".join(_line(poem.as_record()) for poem in poems))
    dropped = [_line({"reason": row.message, "where": str(row.origin), "step": "read"}) for row in bad]
    dropped += [
        _line({**poem.poem.as_record(), "where": poem.poem.where, "step": name, "reason": poem.reason})
        for name, log in logs
        for poem in log.dropped
    ]
    if dropped:
        write_text(dropped_file, "".join(dropped))
    elif dropped_file.exists():
        dropped_file.unlink()
    return Cleaned(read, tuple(bad), len(poems), tuple(logs), output, dropped_file if dropped else None)


def read_all(paths: Sequence[Path], field: str | None, listen: Listener = ignore) -> tuple[list[Poem], list[BadRow]]:
    """Return the poems of files and folders, and the records that hold none; :class:`UserError` if all are such."""
    poems: list[Poem] = []
    bad: list[BadRow] = []
    try:
        for number, path in enumerate(paths, start=1):
            for found in read_poems(path, field):
                if isinstance(found, BadRow):
                    bad.append(found)
                else:
                    poems.append(found)
            listen({"kind": "progress", "task": "reading files", "done": number, "total": len(paths)})
    except ProsodyError as error:
        raise UserError(str(error)) from error
    if not poems:
        shown = "".join(f"\n    {row}" for row in bad[:3])
        raise UserError(f"no verse in {', '.join(map(str, paths))}{shown}")
    return poems, bad


def _told(poems: Sequence[Poem], step: str, listen: Listener) -> Iterator[Poem]:
    """Yield *poems*, telling now and then how far it is."""
    for number, poem in enumerate(poems, start=1):
        if number % _TOLD == 0 or number == len(poems):
            listen({"kind": "progress", "task": step, "done": number, "total": len(poems)})
        yield poem


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def counts_of(steps: Iterable[tuple[str, Log]]) -> list[tuple[str, str, int]]:
    """Return (step, what it did, how many poems) in the order of the steps, the commonest first."""
    return [(name, what, count) for name, log in steps for what, count in log.counts.most_common()]
