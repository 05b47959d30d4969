"""JSON that fits a schema, computed by llguidance."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.generation.constraints._grammar import AbstractGrammar


class JsonSchema(AbstractGrammar):
    """Lets a model write only JSON that the schema takes."""

    # ``schema`` is a method of pydantic's
    json_schema: dict[str, Any] | str = {"type": "object"}
    """The JSON schema, as a group or as JSON text; left out, any object."""

    whitespace: bool = False
    """Allow spaces and line breaks between parts; a weak model may go on with them for ever."""

    def grammar(self, *, leading_space: bool) -> str:
        """Return llguidance's grammar for the schema; raise ``ValueError`` where it is none."""
        from llguidance import LLMatcher

        schema = json.loads(self.json_schema) if isinstance(self.json_schema, str) else self.json_schema
        if not isinstance(schema, dict):
            raise ValueError(f"a schema is an object, found {json.dumps(schema, ensure_ascii=False)[:40]}")
        if not leading_space:
            return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": self.whitespace})
        options = {"whitespace_flexible": self.whitespace}
        written = json.dumps({**schema, "x-guidance": {**schema.get("x-guidance", {}), **options}})
        return LLMatcher.grammar_from_lark(f'start: " "? answer\nanswer: %json {written}')
