"""``[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}``, the id left out or not: Mistral, tokenizers v11 and later."""

from tunesmith.templates.tool_calls._named_json import AbstractNamedJson


class MistralArguments(AbstractNamedJson):
    """A token before every call, and one between its name and its arguments."""

    marks = ("[TOOL_CALLS]",)
    head = r"\[TOOL_CALLS\](?P<name>[^\[\]{}]+)(?:\[CALL_ID\](?P<id>[^\[\]{}]+))?\[ARGS\]"
