"""Read values out of written text without trusting it: JSON, Python literals, and text whose schema says what it is."""

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from tunesmith.templates.tool_calls._base import Block, ToolCall

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters", "args")
_CONSTANTS = {"true": True, "false": False, "null": None}
_UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# a model may write a line break into a string as it is
_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)


def skip_space(text: str, start: int) -> int:
    """Return where the first character at or after *start* is that is no white space."""
    found = re.compile(r"\S").search(text, start)
    return found.start() if found else len(text)


def read_json(text: str, start: int) -> tuple[Any, int] | None:
    """Return the object or list at *start* (after white space) and where it ends; None where there is none, or half."""
    begin = skip_space(text, start)
    if text[begin : begin + 1] not in ("{", "["):
        return None
    try:
        return _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None


def read_mapping(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """Return the JSON object at *start* and where it ends; None where there is none."""
    found = read_json(text, start)
    return found if found and isinstance(found[0], dict) else None


def as_calls(value: Any) -> tuple[ToolCall, ...]:
    """Return the calls that *value*, one object or a list, stands for; nothing where a part of it is no call."""
    calls = [_as_call(each) for each in (value if isinstance(value, list) else [value])]
    return tuple(call for call in calls if call) if all(calls) else ()


def close_block(found: Block, rejected: Block, text: str, closing: str, *, final: bool) -> Block | None:
    """Return *found* with the mark that closes it, which may be missing where the text ends.

    None while the mark may still come; *rejected* where something else stands there, or no call was found.
    """
    end = found.end
    if closing:
        after = skip_space(text, end)
        if text.startswith(closing, after):
            end = after + len(closing)
        elif not closing.startswith(text[after:]):
            return rejected
        elif not final:
            return None
    return Block(found.calls, end) if found.calls else rejected


def _as_call(value: Any) -> ToolCall | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value, **value["function"]}
    if not isinstance(value, dict):
        return None
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), "")
    given = next((value[key] for key in _ARGUMENTS if key in value), None)
    if isinstance(given, str):  # as OpenAI writes it: JSON in a text
        found = read_mapping(given, 0)
        given = found[0] if found and not given[found[1] :].strip() else given
    if not name or not isinstance(given, dict):
        return None
    written_id = value.get("id")
    return ToolCall(name, given, written_id if isinstance(written_id, str) else None)


def from_schema(text: str, schema: Mapping[str, Any] | None) -> Any:
    """Return what *text* says where *schema* tells its type; without a schema, what JSON makes of it, or the text."""
    types = _types(schema or {})
    if types == {"string"}:
        return text
    # some templates print values as Python does
    for read in (_DECODER.decode, _python_literal):
        try:
            value = read(text.strip())
        except _UNREADABLE:
            continue
        if isinstance(value, str) and not types:
            return text
        if not types or types & _json_types(value):
            return value if _is_json(value) else text
    return text


def _python_literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.literal_eval(text)


def _types(schema: Mapping[str, Any]) -> set[str]:
    declared = schema.get("type")
    found = {declared} if isinstance(declared, str) else set(declared) if isinstance(declared, list) else set()
    for union in ("anyOf", "oneOf"):
        for choice in schema.get(union) or ():
            found |= _types(choice)
    return found


def _json_types(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if float(value).is_integer() else {"number"}
    names: dict[type, str] = {str: "string", list: "array", dict: "object", type(None): "null"}
    return {name for kind, name in names.items() if isinstance(value, kind)}


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float)


def end_of_brackets(text: str, start: int) -> int | None:
    """Return where the bracket at *start* is closed, as Python reads it; None where it is not."""
    depth, quote, index = 0, "", start
    while index < len(text):
        character = text[index]
        if quote:
            index += character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth <= 0:
                return index + 1
        index += 1
    return None


def read_python_calls(text: str) -> tuple[ToolCall, ...]:
    """Return the calls with named arguments that a Python list or lines of it hold; nothing where a part is none."""
    try:
        with warnings.catch_warnings():  # what a model wrote is no code of ours to be warned of
            warnings.simplefilter("ignore")
            body = ast.parse(text.strip()).body
        nodes = [node.value for node in body if isinstance(node, ast.Expr)]
        if len(nodes) != len(body):
            return ()
        if len(nodes) == 1 and isinstance(nodes[0], ast.List | ast.Tuple):
            nodes = nodes[0].elts
        return tuple(_python_call(node) for node in nodes)
    except _UNREADABLE:
        return ()


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    arguments = {}
    for each in node.keywords:
        if each.arg is None:
            raise ValueError("no name")
        arguments[each.arg] = _python_value(each.value)
    return ToolCall(ast.unparse(node.func), arguments)


def _python_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_python_value(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) if key else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("a key that is no text")
        return dict(zip(keys, map(_python_value, node.values), strict=True))
    value = ast.literal_eval(node)
    if not _is_json(value):
        raise ValueError("a value that JSON does not have")
    return value
