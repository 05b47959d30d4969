"""``<|start|>assistant to=functions.name<|channel|>commentary json<|message|>{…}<|call|>``: gpt-oss."""

from tunesmith.templates.tool_calls._named_json import AbstractNamedJson


class Harmony(AbstractNamedJson):
    """A message of its own to the function; the recipient stands in the role or after the channel."""

    marks = (
        "<|start|>assistant to=functions.",
        "<|start|>assistant<|channel|>commentary to=functions.",
        "<|channel|>commentary to=functions.",
        " to=functions.",
    )
    silent = (
        "<|start|>assistant",
        "<|channel|>final<|message|>",
        "<|channel|>commentary<|message|>",
        "<|call|>",
        "<|end|>",
        "<|return|>",
    )
    head = (
        r"(?:<\|start\|>assistant)?(?:<\|channel\|>commentary)? to=functions\.(?P<name>[^<>{}\s]+)"
        r"\s*(?:<\|channel\|>\w+\s*)?(?:<\|constrain\|>)?(?:json)?\s*<\|message\|>"
    )
