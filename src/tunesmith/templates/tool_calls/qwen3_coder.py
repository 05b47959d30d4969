"""``<function=name><parameter=key>value</parameter></function>`` in tags: Qwen3-Coder, Qwen 3.5, Step 3.5, Seed-OSS."""

from tunesmith.templates.tool_calls._tagged import AbstractTaggedArguments


class Qwen3Coder(AbstractTaggedArguments):
    """Function and parameters as tags, most with a line break inside of each."""

    marks = ("<function=",)
    wrappers = ("<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>")
    head = r"<function=(?P<name>[^<>{}\n]+)>"
    argument = r"<parameter=(?P<key>[^<>\n]+)>\n?"
    ending = r"\n?</parameter>"
    tail = r"</function>"
