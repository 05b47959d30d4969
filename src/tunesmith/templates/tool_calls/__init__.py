"""How models write tool calls: one file per form, found for a template by rendering a call and reading it back."""

from tunesmith.core.registry import Registry
from tunesmith.templates.tool_calls._base import Block, ToolCall, ToolCallForm

TOOL_CALL_FORMS = Registry("tool_call_form", "tunesmith.templates.tool_calls", ToolCallForm)

__all__ = ["TOOL_CALL_FORMS", "Block", "ToolCall", "ToolCallForm"]
