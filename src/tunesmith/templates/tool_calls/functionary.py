"""``<function=name>{…}</function>``: Functionary 3.1, Llama 3.1 with tools of the user's own."""

from tunesmith.templates.tool_calls._named_json import AbstractNamedJson


class Functionary(AbstractNamedJson):
    """The name in the tag, JSON between the tags."""

    marks = ("<function=",)
    head = r"<function=(?P<name>[^<>{}]+)>"
    closing = "</function>"
