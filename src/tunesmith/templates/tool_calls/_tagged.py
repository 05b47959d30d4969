"""What forms share that write every argument between marks of its own, its value as plain text."""

import re
from typing import Any, ClassVar

from tunesmith.templates.tool_calls._base import Block, Schemas, ToolCall, ToolCallForm
from tunesmith.templates.tool_calls._values import from_schema


class AbstractTaggedArguments(ToolCallForm):
    """A head with the name, arguments one by one, a tail.

    A value ends at the closing mark that another argument or the tail follows, so that a closing mark inside of a text
    is part of it.  The type of a value is the schema's to say; without a schema, what JSON makes of the text.
    """

    head: ClassVar[str]
    """Regular expression of all before the arguments, mark included, with a group ``name``."""
    argument: ClassVar[str]
    """Regular expression up to a value, with a group ``key`` and perhaps ``type``."""
    ending: ClassVar[str]
    """Regular expression of what closes a value."""
    tail: ClassVar[str]
    """Regular expression of what closes the call."""
    longest_head: ClassVar[int] = 400
    """Characters after which a head that does not match is none."""

    def value(self, text: str, kind: str | None, schema: Any) -> Any:  # noqa: ARG002 - for forms that write the type
        """Return what the *text* of an argument says; *kind* is the form's own word for its type."""
        return from_schema(text, schema)

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:  # noqa: ARG002
        head = re.compile(self.head, re.DOTALL).match(text, start)
        if head is None:
            return Block((), start + 1) if len(text) - start > self.longest_head else None
        another = self.argument.replace("?P<", "?P<_")  # a name can be given once
        follows = rf"(?=\s*(?:{another}|{self.tail}))"
        pair = re.compile(rf"\s*{self.argument}(?P<value>.*?){self.ending}{follows}", re.DOTALL)
        known, arguments, place = schemas.get(head["name"], {}), {}, head.end()
        while found := pair.match(text, place):
            key, kind = found["key"], found.groupdict().get("type")
            arguments[key] = self.value(found["value"], kind, known.get(key))
            place = found.end()
        tail = re.compile(rf"\s*{self.tail}").match(text, place)
        return Block((ToolCall(head["name"], arguments),), tail.end()) if tail else None
