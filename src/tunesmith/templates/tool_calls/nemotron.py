"""``<TOOLCALL>[{"name": …, "arguments": {…}}, …]</TOOLCALL>``: Nemotron."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class Nemotron(AbstractJsonCalls):
    """A JSON list of all calls in one pair of tags."""

    marks = ("<TOOLCALL>",)
    closing = "</TOOLCALL>"
