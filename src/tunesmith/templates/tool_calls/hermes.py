"""``<tool_call>{"name": …, "arguments": {…}}</tool_call>``: Hermes, Qwen 2.5 and 3, QwQ, Granite 4, MiMo."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class Hermes(AbstractJsonCalls):
    """JSON in tags, one pair of tags a call."""

    marks = ("<tool_call>",)
    closing = "</tool_call>"
