"""What forms share that write the name of a call as text, and its arguments as a JSON object after it."""

import re
from typing import ClassVar

from tunesmith.templates.tool_calls._base import Block, Schemas, ToolCall, ToolCallForm
from tunesmith.templates.tool_calls._values import close_block, read_mapping, skip_space


class AbstractNamedJson(ToolCallForm):
    """A mark, what :attr:`head` matches (it names the function), the JSON, and for some a mark that closes it."""

    head: ClassVar[str]
    """Regular expression of all before the JSON, mark included, with a group ``name`` and perhaps ``id``."""
    closing: ClassVar[str] = ""
    longest_head: ClassVar[int] = 400
    """Characters after which a head that does not match is none."""

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:  # noqa: ARG002
        rejected = Block((), start + 1)
        head = re.compile(self.head, re.DOTALL).match(text, start)
        if head is None:
            return rejected if len(text) - start > self.longest_head else None
        found = read_mapping(text, head.end())
        if found is None:
            first = text[skip_space(text, head.end()) :][:1]
            return rejected if first and first != "{" else None
        arguments, end = found
        call = ToolCall(head["name"].strip(), arguments, head.groupdict().get("id"))
        return close_block(Block((call,), end), rejected, text, self.closing, final=final)
