"""``<|tool_call>call:name{key:<|"|>text<|"|>,other:3}<tool_call|>``: Gemma 4."""

import re
from typing import Any

from tunesmith.templates.tool_calls._base import Block, Schemas, ToolCall, ToolCallForm

_HEAD = re.compile(r"<\|tool_call>call:(?P<name>[^<>{}\s]+)(?=\{)")
_QUOTE, _CLOSING = '<|"|>', "<tool_call|>"
_CONSTANTS = {"true": True, "false": False, "null": None}
_NUMBER = re.compile(r"-?\d+(?P<fraction>\.\d+)?(?P<exponent>[eE][-+]?\d+)?")


class Gemma4(ToolCallForm):
    """A notation like JSON's, with bare keys and a token for quotes, so that nothing in a text needs an escape."""

    marks = ("<|tool_call>call:",)
    silent = ("<|tool_response>",)

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:  # noqa: ARG002
        head = _HEAD.match(text, start)
        if head is None:
            return Block((), start + 1) if len(text) - start > 400 else None
        try:
            arguments, end = _read(text, head.end())
        except IndexError:  # the text ends before the value does
            return None
        except (ValueError, RecursionError):
            return Block((), start + 1)
        if text.startswith(_CLOSING, end):
            return Block((ToolCall(head["name"], arguments),), end + len(_CLOSING))
        return None if _CLOSING.startswith(text[end:]) else Block((), start + 1)


def _read(text: str, place: int) -> tuple[Any, int]:
    """Return the value at *place* and where it ends; raise ``IndexError`` for half a value, ``ValueError`` for none."""
    if text.startswith(_QUOTE, place):
        return _read_text(text, place)
    if text[place] == "{":
        return _read_items(text, place + 1, "}")
    if text[place] == "[":
        return _read_items(text, place + 1, "]")
    end = place
    while text[end] not in ",]}":
        end += 1
    word = text[place:end]
    if word in _CONSTANTS:
        return _CONSTANTS[word], end
    number = _NUMBER.fullmatch(word)
    if number is None:
        raise ValueError(f"no value: {word!r}")
    return float(word) if number["fraction"] or number["exponent"] else int(word), end


def _read_text(text: str, place: int) -> tuple[str, int]:
    begin = place + len(_QUOTE)
    end = text.find(_QUOTE, begin)
    if end < 0:
        raise IndexError
    return text[begin:end], end + len(_QUOTE)


def _read_items(text: str, place: int, closing: str) -> tuple[Any, int]:
    """Return the mapping or the list whose items begin at *place*."""
    mapping: dict[str, Any] = {}
    items: list[Any] = []
    while text[place] != closing:
        key = ""
        if closing == "}":
            key, place = _read_key(text, place)
        value, place = _read(text, place)
        mapping[key] = value
        items.append(value)
        if text[place] not in "," + closing:
            raise ValueError("no comma")
        place += text[place] == ","
    return (mapping if closing == "}" else items), place + 1


def _read_key(text: str, place: int) -> tuple[str, int]:
    if text.startswith(_QUOTE, place):
        key, end = _read_text(text, place)
    else:
        end = text.find(":", place)
        key = text[place:end]
    if end < 0:
        raise IndexError
    if text[end] != ":":
        raise ValueError("no colon")
    return key, end + 1
