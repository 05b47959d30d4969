"""Lines ``name(key=value)`` in ``<function_calls>`` tags: OLMo 3."""

from tunesmith.templates.tool_calls._base import Block, Schemas, ToolCallForm
from tunesmith.templates.tool_calls._values import read_python_calls

_OPENING, _CLOSING = "<function_calls>", "</function_calls>"


class OLMo3(ToolCallForm):
    """One call a line, read as literals, never run."""

    marks = (_OPENING,)

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:  # noqa: ARG002
        begin = start + len(_OPENING)
        end = text.find(_CLOSING, begin)
        while end >= 0:  # a closing tag inside of a text is no end
            if calls := read_python_calls(text[begin:end]):
                return Block(calls, end + len(_CLOSING))
            end = text.find(_CLOSING, end + 1)
        return None
