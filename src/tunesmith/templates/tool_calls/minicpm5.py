"""``<function name="…"><param name="…">value</param></function>``: MiniCPM 5."""

from typing import Any

from tunesmith.templates.tool_calls._tagged import AbstractTaggedArguments


class MiniCPM5(AbstractTaggedArguments):
    """Calls and parameters as tags; a text with line breaks or tags is wrapped in CDATA."""

    marks = ('<function name="',)
    head = r'<function name="(?P<name>[^"<>\n]+)">'
    argument = r'<param name="(?P<key>[^"<>\n]+)">'
    ending = r"</param>"
    tail = r"</function>"

    def value(self, text: str, kind: str | None, schema: Any) -> Any:
        if text.startswith("<![CDATA[") and text.endswith("]]>"):
            text = text.removeprefix("<![CDATA[").removesuffix("]]>")
        return super().value(text, kind, schema)
