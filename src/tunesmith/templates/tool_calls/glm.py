"""``<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>``: GLM 4.5 to 5, Ling."""

from tunesmith.templates.tool_calls._tagged import AbstractTaggedArguments


class GLM(AbstractTaggedArguments):
    """The name as text, keys and values in tags; GLM 4.5 and 4.6 break the line between them."""

    marks = ("<tool_call>",)
    head = r"<tool_call>\s*(?P<name>[^<>{}\s]+)\s*(?=<)"
    argument = r"<arg_key>(?P<key>[^<>\n]+)</arg_key>\s*<arg_value>"
    ending = r"</arg_value>"
    tail = r"</tool_call>"
