"""Free text whose tool calls fit their schemas, computed by llguidance."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field

from tunesmith.core.registry import Block
from tunesmith.generation.constraints._grammar import AbstractGrammar


class CallText(Block):
    """How a call is written."""

    begin: Annotated[str, Field(min_length=1)]
    """What stands before its JSON; nothing else that is written may begin like it."""

    mark: Annotated[str, Field(min_length=1)]
    """The beginning of ``begin`` that only calls have, such as <tool_call>: from there on the form is held."""

    json_schema: dict[str, Any]
    """The JSON schema of what stands between."""

    end: str = ""
    """What stands after its JSON."""


class ToolCalls(AbstractGrammar):
    """Lets a model write as it likes, and holds what follows the marks of tool calls to their schemas."""

    calls: Annotated[tuple[CallText, ...], Field(min_length=1)]
    """How calls are written; the server makes these of a request's strict tools."""

    def grammar(self, *, leading_space: bool) -> str:  # noqa: ARG002 - free text may begin with one anyway
        """Return llguidance's grammar; raise ``ValueError`` where a mark does not begin its call."""
        from llguidance import StructTag

        for call in self.calls:
            if not call.begin.startswith(call.mark):
                raise ValueError(f"a call that begins with {call.begin!r} does not begin with the mark {call.mark!r}")
        tags = [
            StructTag(trigger=call.mark, begin=call.begin, grammar=json.dumps(call.json_schema), end=call.end)
            for call in self.calls
        ]
        return str(StructTag.to_grammar(tags, assume_special=False))
