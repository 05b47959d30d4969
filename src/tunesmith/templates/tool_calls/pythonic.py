"""``[name(key=value), …]`` as the whole answer or between tokens: Llama 3.2 and 4, LFM 2."""

from tunesmith.templates.tool_calls._base import Block, Schemas, ToolCallForm
from tunesmith.templates.tool_calls._values import end_of_brackets, read_python_calls, skip_space


class Pythonic(ToolCallForm):
    """A Python list of calls with named arguments; read as literals, never run."""

    marks = ("<|tool_call_start|>", "<|python_start|>")
    first_marks = ("[",)
    wrappers = ("<|tool_call_end|>", "<|python_end|>")

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:  # noqa: ARG002
        mark = next((each for each in self.marks if text.startswith(each, start)), "")
        begin = skip_space(text, start + len(mark))
        rejected = Block((), start + (len(mark) or 1))
        if begin == len(text):
            return None
        end = end_of_brackets(text, begin) if text[begin] == "[" else begin
        if end is None:
            return None
        calls = read_python_calls(text[begin:end])
        return Block(calls, end) if calls else rejected
