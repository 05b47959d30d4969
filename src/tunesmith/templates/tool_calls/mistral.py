"""``[TOOL_CALLS] [{"name": …, "arguments": {…}, "id": …}, …]``: Mistral, tokenizers v2 to v7."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class Mistral(AbstractJsonCalls):
    """A JSON list of all calls after one token; the id of a call has nine letters and digits."""

    marks = ("[TOOL_CALLS]",)
