"""``<tool_calls>[{"name": …, "arguments": {…}}, …]</tool_calls>``: Hunyuan."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class Hunyuan(AbstractJsonCalls):
    """A JSON list of all calls in one pair of tags."""

    marks = ("<tool_calls>",)
    closing = "</tool_calls>"
