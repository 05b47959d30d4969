"""``<|action_start|><|plugin|>{"name": …, "parameters": {…}}<|action_end|>``: InternLM 2 and 3."""

from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class InternLM(AbstractJsonCalls):
    """One JSON object between tokens."""

    marks = ("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>")
    closing = "<|action_end|>"
