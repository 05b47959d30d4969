"""``<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`` and fenced JSON: DeepSeek V3 and R1."""

from tunesmith.templates.tool_calls._named_json import AbstractNamedJson


class DeepSeekR1(AbstractNamedJson):
    """The kind of tool, its name, and the arguments in a code block."""

    marks = ("<｜tool▁call▁begin｜>",)
    wrappers = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    head = r"<｜tool▁call▁begin｜>\w+<｜tool▁sep｜>(?P<name>[^<>{}\n]+)\n```json\n"
    closing = "```<｜tool▁call▁end｜>"
