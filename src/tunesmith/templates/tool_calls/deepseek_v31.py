"""``<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>``: DeepSeek V3.1."""

from tunesmith.templates.tool_calls._named_json import AbstractNamedJson


class DeepSeekV31(AbstractNamedJson):
    """The name and the arguments, between tokens."""

    marks = ("<｜tool▁call▁begin｜>",)
    wrappers = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    head = r"<｜tool▁call▁begin｜>(?P<name>[^<>{}\n]+)<｜tool▁sep｜>"
    closing = "<｜tool▁call▁end｜>"
