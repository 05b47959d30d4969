"""``<|open|>call tool="…"<|sep|><|open|>argument key="…" type="…"<|sep|>value<|close|>argument<|sep|>``: Kimi K3."""

from typing import Any

from tunesmith.templates.tool_calls._tagged import AbstractTaggedArguments
from tunesmith.templates.tool_calls._values import from_schema


class KimiK3(AbstractTaggedArguments):
    """Calls and arguments as tags made of tokens; each argument says its type."""

    marks = ('<|open|>call tool="',)
    wrappers = ("<|open|>tools<|sep|>", "<|close|>tools<|sep|>")
    silent = (
        "<|open|>response<|sep|>",
        "<|close|>response<|sep|>",
        "<|close|>message<|sep|>",
    )
    head = r'<\|open\|>call tool="(?P<name>[^"<>\n]+)"[^<>]*<\|sep\|>'
    argument = r'<\|open\|>argument key="(?P<key>[^"<>\n]+)" type="(?P<type>\w+)"<\|sep\|>'
    ending = r"<\|close\|>argument<\|sep\|>"
    tail = r"<\|close\|>call<\|sep\|>"

    def value(self, text: str, kind: str | None, schema: Any) -> Any:  # noqa: ARG002 - the argument says it itself
        return text if kind == "string" else from_schema(text, None)
