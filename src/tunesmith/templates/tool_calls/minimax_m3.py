"""``<invoke name="…"><key>value</key></invoke>``, a mark before every tag, values nested as tags: MiniMax M3."""

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.templates.tool_calls._base import Block, Schemas, ToolCall, ToolCallForm
from tunesmith.templates.tool_calls._values import from_schema

_MARK = "]<]minimax[>["
_HEAD = re.compile(re.escape(_MARK) + r'<invoke name="(?P<name>[^"<>\n]+)">')
_TAG = re.compile(re.escape(_MARK) + r"<(?P<closing>/?)(?P<key>[^<>\n]+)>")


class MiniMaxM3(ToolCallForm):
    """A mapping is tags of its keys, a list is ``<item>`` tags; what is empty is null, as nothing tells otherwise."""

    marks = (_MARK + '<invoke name="',)
    wrappers = (_MARK + "<tool_call>", _MARK + "</tool_call>")

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:  # noqa: ARG002
        head = _HEAD.match(text, start)
        end = text.find(_MARK + "</invoke>", start)
        if head is None or end < 0:
            return None
        known = schemas.get(head["name"], {})
        try:
            schema = {"type": "object", "properties": known}
            value, place = _read(text, head.end(), "invoke", schema)
        except (IndexError, RecursionError):
            return Block((), start + len(_MARK))
        arguments = value if isinstance(value, dict) else {}
        return Block((ToolCall(head["name"], arguments),), place)


def _read(text: str, place: int, key: str, schema: Mapping[str, Any]) -> tuple[Any, int]:
    """Return what stands up to the tag that closes *key*, and where that ends; raise ``IndexError`` without one."""
    begin = place
    names: list[str] = []
    values: list[Any] = []
    while found := _TAG.search(text, place):
        if found["closing"]:
            if found["key"] != key:
                raise IndexError
            return _value(names, values, text[begin : found.start()], schema), found.end()
        inner = schema.get("items") if found["key"] == "item" else (schema.get("properties") or {}).get(found["key"])
        value, place = _read(text, found.end(), found["key"], inner if isinstance(inner, dict) else {})
        names.append(found["key"])
        values.append(value)
    raise IndexError


def _value(names: list[str], values: list[Any], text: str, schema: Mapping[str, Any]) -> Any:
    if not names:
        return from_schema(text, schema) if text or schema.get("type") == "string" else _empty(schema)
    if schema.get("type") != "object" and set(names) == {"item"}:
        return values
    return dict(zip(names, values, strict=True))


def _empty(schema: Mapping[str, Any]) -> Any:
    return {"object": {}, "array": []}.get(str(schema.get("type")))
