"""What an import gives: a recipe's values in order and without defaults, as YAML with comments, and counts."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tunesmith.core.errors import Problem, RecipeError
from tunesmith.core.registry import Block, Spec
from tunesmith.optimizers import OPTIMIZERS, Optimizer
from tunesmith.recipe.document import Document, write_values
from tunesmith.recipe.explain import explain
from tunesmith.recipe.read import check_document
from tunesmith.recipe.schema import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tunesmith.recipe.importing.translation import Translation

_WIDTH = 120


@dataclass(frozen=True)
class Imported:
    """A configuration of another program as a recipe."""

    title: str
    """Of the program."""

    source: str
    """The file, or ``the command line``."""

    values: dict[str, Any]
    notes: Mapping[str, Sequence[str]]
    """Path of a setting -> what is said beside it."""

    differing: Mapping[str, str]
    """Argument that has no line in the recipe -> what differs all the same."""

    remarks: Mapping[str, str]
    """Argument -> why it is not needed."""

    skipped: Mapping[str, str]
    """Argument that was refused, and left out as was asked -> why it was refused."""

    origins: Mapping[tuple[str, ...], str]
    counts: Mapping[str, int]
    """Of the arguments given: ``translated``, ``differs``, ``not needed``, ``refused``."""

    @property
    def summary(self) -> str:
        """Say in one line what became of the arguments."""
        total = sum(self.counts.values())
        parts = ", ".join(f"{count} {word}" for word, count in self.counts.items())
        return f"{self.title}, {self.source}: {total} arguments: {parts}"

    @cached_property
    def text(self) -> str:
        """The recipe as YAML; what differs stands beside its setting, what has none at the end."""
        lines = [f"# imported from {self.title}, {self.source}", *_lines(self.values, (), self.notes)]
        parts = {"differs": self.differing, "not needed": self.remarks, "REFUSED and left out": self.skipped}
        for heading, said in parts.items():
            if said:
                lines += ["", f"# {heading}:", *(row for name, why in said.items() for row in _remark(name, why))]
        return "\n".join(lines) + "\n"

    @property
    def explanations(self) -> list[str]:
        """What differs, one line each, and what was refused."""
        beside = [f"{path}: {text}" for path, texts in self.notes.items() for text in texts]
        beside += [f"{name}: {why}" for name, why in self.differing.items()]
        return beside + [f"{name}: refused and left out: {why}" for name, why in self.skipped.items()]

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """Return the recipe with *overrides*, checked; raise :class:`RecipeError`."""
        document = Document(dict(self.values), dict(self.origins))
        for override in overrides:
            document.apply(override)
        return check_document(document)


def make_result(t: Translation, *, skip_refused: bool) -> Imported:
    """Return what came of the translation *t*; raise :class:`RecipeError` for what was refused or cannot be."""
    refusals = [*t.fatal, *([] if skip_refused else t.refusals)]
    if refusals:
        hint = "left out with --skip-refused" if not t.fatal else "without it this would be another training"
        last = Problem("", f"{len(refusals)} refused; {hint}")
        order = [given.name for given in t.asked.values()]
        refusals.sort(key=lambda problem: order.index(problem.path) if problem.path in order else len(order))
        raise RecipeError([*refusals, last])
    origins: dict[tuple[str, ...], str] = {(): t.source}
    for path, names in t.made_of.items():
        where = [f"{t.asked[name].where}: {t.asked[name].name}" for name in names if t.said(name)]
        origins[tuple(path.split("."))] = where[0] if where else f"{t.source}: {t.program.title}'s default"
    recipe = _validate(t, Document(t.values, origins))
    said = {path for path, names in t.made_of.items() if any(map(t.said, names))}
    values = _tidy(t.values, recipe, (), said)
    kept = dict(_leaves(values))
    notes, remarks = _share_notes(t, kept)
    remarks = {t.written(name): why for name, why in remarks.items()}
    differs = {t.written(name) for name in t.differing}
    refused = {problem.path: problem.message for problem in t.refusals}
    return Imported(
        title=t.program.title,
        source=t.source,
        values=values,
        notes=notes,
        differing={name: why for name, why in remarks.items() if name in differs},
        remarks={name: why for name, why in remarks.items() if name not in differs},
        skipped=refused,
        origins={at: where for at, where in origins.items() if not at or ".".join(at) in kept},
        counts=_count(t, differs, remarks, refused),
    )


def _validate(t: Translation, document: Document) -> Recipe:
    """Return the recipe; raise :class:`RecipeError` in the words of the other program where a value cannot be."""
    try:
        return Recipe.model_validate(document.values)
    except ValidationError as error:
        problems: dict[str, Problem] = {}
        for found in explain(error.errors(), document):
            names = t.made_of.get(found.path, [])
            name = next((t.written(name) for name in names if t.said(name)), found.path)
            where = next((t.asked[name].where for name in names if t.said(name)), found.where)
            problem = Problem(name, f"{found.message} (as {found.path})", where, found.hint)
            problems.setdefault(name, problem)  # the first of several settings that one argument makes
        raise RecipeError(list(problems.values())) from None


def _tidy(values: dict[str, Any], block: BaseModel, at: tuple[str, ...], said: set[str]) -> dict[str, Any]:
    """Return *values* in the order of the schema, without what is *block*'s default anyway."""
    usual = isinstance(block, Optimizer) and block.type_name() == OPTIMIZERS.default
    named = "type" in values and (not usual or ".".join((*at, "type")) in said)
    out: dict[str, Any] = {"type": values["type"]} if named else {}
    for name, setting in type(block).model_fields.items():
        if name not in values:
            continue
        own, default = getattr(block, name), setting.get_default(call_default_factory=True)
        if isinstance(own, Block) and isinstance(values[name], dict):
            inner = _tidy(values[name], own, (*at, name), said)
            if own != default and (inner or default is None):
                out[name] = _short(inner, own)
        elif own != default:
            out[name] = values[name]
    return out


def _short(values: dict[str, Any], block: Block) -> Any:
    """Return the text that a group of one setting stands for."""
    short = "type" if isinstance(block, Spec) else block.short_for
    return values[short] if list(values) == [short] else values


def _leaves(values: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Yield the path of every setting, and whether it is no group."""
    for key, value in values.items():
        yield ".".join((*at, key)), not isinstance(value, dict)
        if isinstance(value, dict):
            yield from _leaves(value, (*at, key))


def _share_notes(t: Translation, kept: Mapping[str, bool]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return notes beside settings that are left; what differs where none is left becomes a remark."""
    notes: dict[str, list[str]] = {}
    remarks = dict(t.remarks)
    for path, said in t.notes.items():
        block, _, last = path.rpartition(".")
        # a group of which only that is left is written as a text
        place = block if last in ("type", "name", "path") and kept.get(block) else path
        for text, name in said:
            if place in kept:
                notes.setdefault(place, []).append(text)
            elif name:
                remarks[name] = text
    return notes, remarks


def _count(t: Translation, differs: set[str], remarks: Mapping[str, str], refused: Mapping[str, str]) -> dict[str, int]:
    counts = dict.fromkeys(("translated", "differs", "not needed", "refused"), 0)
    for name in {given.name for given in t.asked.values()}:
        if name in refused:
            counts["refused"] += 1
        elif name in differs:
            counts["differs"] += 1
        else:
            counts["not needed" if name in remarks else "translated"] += 1
    return counts


def _lines(values: dict[str, Any], at: tuple[str, ...], notes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield YAML; a note that fits stands at the end of its line, others above it."""
    indent = "  " * len(at)
    for key, value in values.items():
        path = ".".join((*at, key))
        inside = isinstance(value, dict) and all(isinstance(name, str) and "." not in name for name in value)
        rows = [f"{key}:"] if inside and value else write_values({key: value}).rstrip().split("\n")
        note = "; ".join(notes.get(path, ()))
        end = f"{indent}{rows[0]}  # {note}"
        if note and len(end) <= _WIDTH:
            rows[0] = end.removeprefix(indent)
        elif note:
            yield from (f"{indent}# {row}" for row in textwrap.wrap(note, _WIDTH - len(indent) - 2))
        yield from (f"{indent}{row}" for row in rows)
        if inside and value:
            yield from _lines(value, (*at, key), notes)


def _remark(name: str, why: str) -> list[str]:
    rows = textwrap.wrap(f"{name}: {why}", _WIDTH - 4, subsequent_indent="  ")
    return [f"#   {row}" for row in rows]
