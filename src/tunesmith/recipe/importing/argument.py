"""What becomes of an argument of another program: the rows of the tables, and how values are read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunesmith.recipe.importing.translation import Translation

Kind = Literal["text", "whole", "number", "flag", "names", "group", "any"]
Outcome = Literal["translated", "explained", "refused"]

_WORDS: Mapping[Kind, str] = {
    "text": "text",
    "whole": "a whole number",
    "number": "a number",
    "flag": "true or false",
    "names": "names, divided by commas",
    "group": "a group of settings, or JSON",
    "any": "anything",
}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Argument:
    """One argument: its outcome, the setting it becomes, what differs or why not, and what leaving it out means."""

    outcome: Outcome
    kind: Kind = "any"
    default: Any = None
    """What the program takes where nothing is said."""

    to: str = ""
    """Path of the setting in a recipe; empty where there is none."""

    text: str = ""
    """What differs, why it is not needed, or why it is refused."""

    copied: bool = False
    """Whether the value goes to the setting as it is; if not, a rule of the program makes something of it."""

    needs: str = ""
    """``name`` or ``name=this|that``: without that argument it does nothing in the other program either."""

    name: str = ""
    """What the rules call it, where the program calls it otherwise."""


@dataclass(frozen=True)
class Program:
    """A program whose configurations can be imported: its arguments, and the rules that make a recipe of them."""

    name: str
    title: str
    arguments: Mapping[str, Argument]
    rules: tuple[Callable[[Translation], None], ...]
    begin: Callable[[Translation], None] = lambda _: None
    """What must be known before the table is followed: which of its rows there are."""

    old_names: Mapping[str, str] = field(default_factory=dict)
    """Names of earlier versions and of tutorials -> today's."""

    complete: bool = True
    """Whether all its arguments are here; where not, others are refused as not translated."""


def copied(to: str, kind: Kind, default: Any = None, text: str = "", *, needs: str = "") -> Argument:
    """Return an argument whose value is a setting's; with *text* it means something a little different there."""
    return Argument("explained" if text else "translated", kind, default, to, text, copied=True, needs=needs)


def ruled(to: str, kind: Kind, default: Any = None, text: str = "", *, needs: str = "") -> Argument:
    """Return an argument of which a rule makes the setting *to*, alone or with others."""
    return Argument("explained" if text else "translated", kind, default, to, text, needs=needs)


def unneeded(text: str, kind: Kind = "any", default: Any = None, *, needs: str = "") -> Argument:
    """Return an argument that has no setting, because nothing would depend on it: *text* says why."""
    return Argument("explained", kind, default, "", text, needs=needs)


def refused(text: str, kind: Kind = "any", default: Any = None, *, needs: str = "") -> Argument:
    """Return an argument without an equal; a value other than its default is refused, because of *text*."""
    return Argument("refused", kind, default, "", text, needs=needs)


def all_of(row: Argument, **defaults: Any) -> dict[str, Argument]:
    """Return several arguments that share an outcome, each with its own default."""
    return {name: replace(row, default=default) for name, default in defaults.items()}


def same_as(arguments: Mapping[str, Argument], name: str, **changes: Any) -> Argument:
    """Return the row *name* of another table under this table's own name for it, with what differs."""
    return replace(arguments[name], name=name, **changes)


def parse(kind: Kind, value: Any) -> Any:
    """Return *value* as its *kind* has it, from YAML or from the command line's text; raise ``ValueError``."""
    return _PARSERS[kind](value)


def wanted(kind: Kind) -> str:
    """Return in words what fits."""
    return _WORDS[kind]


def _text(value: Any) -> str:
    if isinstance(value, dict | list):
        raise ValueError
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | dict | list):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _flag(value: Any) -> bool:
    word = str(value).lower()
    if word not in _TRUE + _FALSE:
        raise ValueError
    return word in _TRUE


def _names(value: Any) -> list[str]:
    parts = value if isinstance(value, list) else _text(value).split(",")
    return [_text(part).strip() for part in parts if _text(part).strip()]


def _group(value: Any) -> dict[str, Any]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise ValueError
    return found


_PARSERS: Mapping[Kind, Callable[[Any], Any]] = {
    "text": _text,
    "whole": _whole,
    "number": _number,
    "flag": _flag,
    "names": _names,
    "group": _group,
    "any": lambda value: value,
}
