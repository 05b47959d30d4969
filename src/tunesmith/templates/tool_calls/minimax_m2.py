"""``<minimax:tool_call><invoke name="…"><parameter name="…">value</parameter></invoke>``: MiniMax M2."""

from tunesmith.templates.tool_calls._tagged import AbstractTaggedArguments


class MiniMaxM2(AbstractTaggedArguments):
    """Calls and parameters as tags."""

    marks = ('<invoke name="',)
    wrappers = ("<minimax:tool_call>", "</minimax:tool_call>")
    head = r'<invoke name="(?P<name>[^"<>\n]+)">'
    argument = r'<parameter name="(?P<key>[^"<>\n]+)">'
    ending = r"</parameter>"
    tail = r"</invoke>"
