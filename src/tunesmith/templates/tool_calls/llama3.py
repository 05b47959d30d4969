"""``{"name": …, "parameters": {…}}`` as the whole answer, after ``<|python_tag|>`` or not: Llama 3.1, 3.2, 3.3."""

from tunesmith.templates.tool_calls._base import Block, Schemas
from tunesmith.templates.tool_calls._json_calls import AbstractJsonCalls


class Llama3(AbstractJsonCalls):
    """Bare JSON, so it is a call only where nothing was said before; several are parted by ``;``."""

    marks = ("<|python_tag|>",)
    first_marks = ("{", ";")

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:
        if text[start] != "{":
            return super().read(text, start, schemas, final=final)
        # the mark is part of the JSON here
        found = super().read("<|python_tag|>" + text[start:], 0, schemas, final=final)
        if found is None:
            return None
        return Block(found.calls, start + found.end - len("<|python_tag|>")) if found.calls else Block((), start + 1)
