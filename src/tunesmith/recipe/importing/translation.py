"""A configuration of another program while it becomes a recipe: what was said, what came of it, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import Problem, RecipeError
from tunesmith.core.registry import suggest
from tunesmith.recipe.importing.argument import Argument, parse, wanted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tunesmith.recipe.importing.argument import Program

_NOTHING: tuple[Any, ...] = (None, "", "none", "None", "null", False, [], {})


@dataclass(frozen=True)
class Given:
    """An argument as it was written: its name there, its value, and where."""

    name: str
    value: Any
    where: str


@dataclass
class Translation:
    """The recipe in the making; rules ask for values by the names that they know, and put settings."""

    program: Program
    base: Mapping[str, Argument]
    """Arguments that rules may ask for although this program has none of that name: they have their defaults."""

    folder: Path
    """Where the configuration lies."""

    source: str
    """What it is called: the file, or ``the command line``."""

    processes: int = 1
    """Processes that the other program was to run in."""

    asked: dict[str, Given] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)
    """What leaving an argument out means here, where the table's default does not say."""

    values: dict[str, Any] = field(default_factory=dict)
    made_of: dict[str, list[str]] = field(default_factory=dict)
    """Path of a setting -> the arguments that it was made of."""

    notes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Path of a setting -> what to say beside it, each with the argument that differs by it; none where it is empty."""

    remarks: dict[str, str] = field(default_factory=dict)
    """Argument -> why it has no setting."""

    differing: set[str] = field(default_factory=set)
    refusals: list[Problem] = field(default_factory=list)
    fatal: list[Problem] = field(default_factory=list)
    """Refusals that cannot be skipped, as without them it would be another training."""

    problems: list[Problem] = field(default_factory=list)

    def take(self, given: list[Given]) -> None:
        """Note what was *given*; raise :class:`RecipeError` for unknown names, names given twice and wrong values."""
        known = {**self.program.arguments, **dict.fromkeys(self.program.old_names, None)}
        for each in given:
            name = self.program.old_names.get(each.name, each.name)
            row = self.program.arguments.get(name)
            title, close = self.program.title, "" if row else suggest(each.name, known)
            if row is None and not self.program.complete:
                self.refusals.append(Problem(each.name, f"is not translated{close}", each.where))
                self.asked[name] = each
            elif row is None:
                self.problems.append(Problem(each.name, f"{title} has no such argument{close}", each.where))
            else:
                self._take_known(row.name or name, row, each)
        if self.problems:
            raise RecipeError(self.problems)

    def _take_known(self, name: str, row: Argument, given: Given) -> None:
        if name in self.asked:
            first = self.asked[name]
            twice = "given twice" if first.name == given.name else f"says the same as {first.name}"
            self.problems.append(Problem(given.name, twice, given.where, "keep one of them"))
        elif given.value is not None and given.value not in ("null", "None", ""):
            self._parse(name, row, given)

    def _parse(self, name: str, row: Argument, given: Given) -> None:
        if given.value is True and given.where.startswith("flag ") and row.kind not in ("flag", "any"):
            self.problems.append(Problem(given.name, f"needs a value: {wanted(row.kind)}", given.where))
            return
        try:
            value = parse(row.kind, given.value)
        except (ValueError, TypeError, OverflowError):
            message = f"should be {wanted(row.kind)}, found {given.value!r}"
            self.problems.append(Problem(given.name, message, given.where))
            return
        if isinstance(given.value, str) and "${" in given.value:
            self.problems.append(Problem(given.name, f"{given.value!r} refers to another value", given.where))
        self.asked[name] = Given(given.name, value, given.where)

    # --- what rules ask

    def said(self, name: str) -> bool:
        """Say whether the argument was given."""
        return name in self.asked

    def value(self, name: str) -> Any:
        """Return the argument's value, or what the program takes where nothing is said."""
        if name in self.asked:
            return self.asked[name].value
        return self.assumed[name] if name in self.assumed else self.row(name).default

    def mean(self, name: str, value: Any, of: str) -> None:
        """Let the argument *of*, given or not, say what rules know as *name*."""
        if of in self.asked:
            self.asked[name] = Given(self.asked[of].name, value, self.asked[of].where)
        else:
            self.assumed[name] = value

    def row(self, name: str) -> Argument:
        """Return what the table says of the argument that rules call *name*."""
        for own, row in self.program.arguments.items():
            if (row.name or own) == name:
                return row
        return self.base[name]

    def written(self, name: str) -> str:
        """Return the argument's name as the user knows it."""
        if name in self.asked:
            return self.asked[name].name
        own = (own for own, row in self.program.arguments.items() if (row.name or own) == name)
        return next(own, name)

    # --- what rules say

    def put(self, path: str, value: Any, *names: str, note: str = "") -> None:
        """Set the setting *path*, made of the arguments *names*; *note* is written beside it."""
        *blocks, last = path.split(".")
        block = self.values
        for key in blocks:
            block = block.setdefault(key, {})
        block[last] = value
        self.made_of[path] = list(names)
        self.notes[path] = [(note, "")] if note else []
        if not note and names and not any(map(self.said, names)):
            self.notes[path].append((f"{self.program.title}'s default", ""))
        for name in filter(self.said, names):
            if text := self.row(name).text:
                self.explain(name, text, path)

    def explain(self, name: str, text: str, path: str = "") -> None:
        """Say of the argument *name* what differs beside the setting *path*, or why there is no setting."""
        if path:
            self.differing.add(name)
            self.notes.setdefault(path, []).append((text, name))
        else:
            self.remarks[name] = text

    def refuse(self, name: str, why: str, hint: str = "", *, fatal: bool = False) -> None:
        """Refuse the argument; where *fatal*, it cannot be skipped."""
        where = self.asked[name].where if name in self.asked else self.source
        (self.fatal if fatal else self.refusals).append(Problem(self.written(name), why, where, hint))

    # --- what the table says

    def follow_table(self) -> None:
        """Copy, explain and refuse what needs no rule."""
        for own, row in self.program.arguments.items():
            name = row.name or own
            needed = row.needs.partition("=")[0]
            if needed and not self._has(row.needs):
                if self.said(name):
                    self.remarks[name] = f"does nothing without {row.needs.replace('=', ': ').replace('|', ' or ')}"
            elif row.copied:
                self._copy(name, row)
            elif self.said(name) and not self._is_default(name, row):
                if row.outcome == "refused":
                    self.refuse(name, row.text)
                elif row.outcome == "explained" and not row.to:
                    self.remarks[name] = row.text

    def _copy(self, name: str, row: Argument) -> None:
        value = self.value(name)
        if value is not None:
            self.put(row.to, value, name)

    def _has(self, needs: str) -> bool:
        name, _, values = needs.partition("=")
        value = self.value(name)
        return str(value) in values.split("|") if values else value not in _NOTHING

    def _is_default(self, name: str, row: Argument) -> bool:
        value = self.value(name)
        nothing = row.outcome == "refused" and row.default in _NOTHING and value in _NOTHING
        return value == row.default or nothing
