"""``<|tool_call|>[{"name": …, "arguments": {…}}, …]``, closed by ``<|/tool_call|>`` or not: Granite 3, Phi-4-mini."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class Granite(AbstractJsonCalls):
    """A JSON list of all calls after one token."""

    marks = ("<|tool_call|>",)
    silent = ("<|/tool_call|>",)
