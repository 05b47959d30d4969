"""A turn of its own, ``function call<|role_sep|>{"name": …, "arguments": {…}}``: GigaChat 3."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class GigaChat(AbstractJsonCalls):
    """One call, written as the turn of a role that is called ``function call``."""

    marks = ("<|message_sep|>\n\nfunction call<|role_sep|>\n", "function call<|role_sep|>\n")
    wrappers = ("<|message_sep|>",)
