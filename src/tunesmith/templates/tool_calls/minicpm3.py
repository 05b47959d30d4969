"""Lines ``name(key=value)`` of a Python code block between tokens: MiniCPM 3."""

from tunesmith.templates.tool_calls._base import Block, Schemas, ToolCallForm
from tunesmith.templates.tool_calls._values import read_python_calls

_OPENING, _CLOSING = "<|tool_call_start|>\n```python\n", "\n```\n<|tool_call_end|>"


class MiniCPM3(ToolCallForm):
    """One call a line, read as literals, never run; the content stands after the calls."""

    marks = (_OPENING,)
    silent = ("<|thought_start|>", "<|thought_end|>")

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:  # noqa: ARG002
        begin = start + len(_OPENING)
        end = text.find(_CLOSING, begin)
        if end < 0:
            return None
        calls = read_python_calls(text[begin:end])
        return Block(calls, end + len(_CLOSING)) if calls else Block((), begin)
