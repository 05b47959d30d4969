"""``Action:`` and a fenced JSON list ``[{"tool_name": …, "parameters": {…}}, …]``: Command R."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class CommandR(AbstractJsonCalls):
    """A JSON list of all calls in a code block."""

    marks = ("Action:\n```json", "Action: ```json")
    closing = "```"
