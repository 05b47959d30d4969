"""``<｜DSML｜invoke name="…"><｜DSML｜parameter name="…" string="true">…``: DeepSeek V3.2 and V4."""

from typing import Any

from tunesmith.templates.tool_calls._tagged import AbstractTaggedArguments
from tunesmith.templates.tool_calls._values import from_schema


class DeepSeekDSML(AbstractTaggedArguments):
    """Calls and parameters as tags; each parameter says whether it is a text or JSON."""

    marks = ('<｜DSML｜invoke name="',)
    wrappers = (
        "<｜DSML｜function_calls>",
        "</｜DSML｜function_calls>",
        "<｜DSML｜tool_calls>",
        "</｜DSML｜tool_calls>",
    )
    head = r'<｜DSML｜invoke name="(?P<name>[^"<>\n]+)">'
    argument = r'<｜DSML｜parameter name="(?P<key>[^"<>\n]+)" string="(?P<type>true|false)">'
    ending = r"</｜DSML｜parameter>"
    tail = r"</｜DSML｜invoke>"

    def value(self, text: str, kind: str | None, schema: Any) -> Any:  # noqa: ARG002 - the parameter says it itself
        return text if kind == "true" else from_schema(text, None)
