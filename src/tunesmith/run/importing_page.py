"""The reference page of what becomes of other programs' arguments, written from the tables."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tunesmith.recipe.importing.read import PROGRAMS

if TYPE_CHECKING:
    from tunesmith.recipe.importing.argument import Argument, Program

_OUTCOMES = {
    "translated": "becomes the setting, and means the same",
    "explained": "means something a little different, or is not needed; the recipe says so",
    "refused": "has no equal; a value other than the program's default is refused, and named",
}


def importing_page() -> str:
    """Return the page: a summary, and for each program every argument with its outcome."""
    parts = [
        "# Imported arguments",
        "`tunesmith import` makes a recipe of a configuration of another program, or of its command line; `tunesmith "
        "train`, `plan` and `inspect` read such files, too.",
        "\n".join(f"- **{name}**: {what}." for name, what in _OUTCOMES.items()),
        _counts(),
    ]
    for program in PROGRAMS.values():
        rest = "" if program.complete else " Any other is refused."
        names = [f"`{old}` is read as `{new}`" for old, new in sorted(program.old_names.items())]
        older = f" Older names: {', '.join(names)}." if names else ""
        parts += [f"## {program.title}", f"`--from {program.name}`.{rest}{older}", _table(program)]
    return "\n\n".join(parts)


def _counts() -> str:
    rows = ["| program | arguments | translated | explained | refused |", "|---|---|---|---|---|"]
    for program in PROGRAMS.values():
        found = Counter(row.outcome for row in program.arguments.values())
        numbers = " | ".join(str(found[outcome]) for outcome in ("translated", "explained", "refused"))
        rows.append(f"| {program.title} | {len(program.arguments)} | {numbers} |")
    return "\n".join(rows)


def _table(program: Program) -> str:
    rows = ["| argument | outcome | setting | what differs, or why |", "|---|---|---|---|"]
    for name, row in sorted(program.arguments.items()):
        setting = f"`{row.to}`" if row.to else ""
        rows.append(f"| `{name}` | {row.outcome} | {setting} | {_why(row)} |")
    return "\n".join(rows)


def _why(row: Argument) -> str:
    needs = f"does nothing without {row.needs.replace('=', ': ').replace('|', ' or ')}" if row.needs else ""
    return "; ".join(part for part in (row.text.replace("|", r"\|"), needs) if part)
