"""How a value found in a row is told to the user: its kind, and enough of it to be recognised."""

import json
from typing import Any

_LENGTH = 60


def describe(value: Any) -> str:
    """Return words for *value*, such as ``the number 42`` or ``a list of 3``; long text is shortened."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {shorten(value)}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with {names(value)}" if value else "an empty object"
        case _:
            return f"a value of type {type(value).__name__}"


def shorten(text: str) -> str:
    """Return *text* in quotes on one line, cut after 60 characters."""
    return json.dumps(text if len(text) <= _LENGTH else text[:_LENGTH] + "…", ensure_ascii=False)


def names(keys: Any, limit: int = 12) -> str:
    """Return the first *limit* names, separated by commas."""
    keys = [str(key) for key in keys]
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
