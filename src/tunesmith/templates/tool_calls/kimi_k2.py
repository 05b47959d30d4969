"""``<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>``: Kimi K2."""

from tunesmith.templates.tool_calls._named_json import AbstractNamedJson


class KimiK2(AbstractNamedJson):
    """What names the function is the call's id, too: the tool's name and the call's number."""

    marks = ("<|tool_call_begin|>",)
    wrappers = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
    head = (
        r"<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?(?P<name>[^<>{}:\s]+)(?::\d+)?)\s*"
        r"<\|tool_call_argument_begin\|>"
    )
    closing = "<|tool_call_end|>"
