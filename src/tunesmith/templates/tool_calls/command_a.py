"""``<|START_ACTION|>[{"tool_name": …, "parameters": {…}}, …]<|END_ACTION|>``: Command R7B, Command A."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class CommandA(AbstractJsonCalls):
    """A JSON list of all calls between two tokens."""

    marks = ("<|START_ACTION|>",)
    closing = "<|END_ACTION|>"
