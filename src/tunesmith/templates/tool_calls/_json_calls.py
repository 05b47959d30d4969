"""What forms share that write a call as a JSON object with its name and arguments, or a list of them."""

from typing import ClassVar

from tunesmith.templates.tool_calls._base import Block, Schemas, ToolCallForm
from tunesmith.templates.tool_calls._values import as_calls, close_block, read_json, skip_space


class AbstractJsonCalls(ToolCallForm):
    """A mark, the JSON, and for some a mark that closes it, which may be missing where the text ends."""

    closing: ClassVar[str] = ""

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:  # noqa: ARG002
        begin = start + len(next(mark for mark in (*self.marks, *self.first_marks) if text.startswith(mark, start)))
        rejected = Block((), begin)
        found = read_json(text, begin)
        if found is None:
            first = text[skip_space(text, begin) :][:1]
            return rejected if first and first not in "[{" else None
        value, end = found
        return close_block(Block(as_calls(value), end), rejected, text, self.closing, final=final)
