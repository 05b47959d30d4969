"""The contract of a form in which tool calls are written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from tunesmith.core.registry import Spec


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: the name of a function, and its arguments as values."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str | None = None

    def as_message_part(self) -> dict[str, Any]:
        """Return the call as ``Message.tool_calls`` holds it and chat templates expect it: arguments are values."""
        call: dict[str, Any] = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return call if self.id is None else {**call, "id": self.id}

    def as_openai(self) -> dict[str, Any]:
        """Return the call as OpenAI's API does: arguments are JSON text."""
        written = json.dumps(self.arguments, ensure_ascii=False)
        call: dict[str, Any] = {"type": "function", "function": {"name": self.name, "arguments": written}}
        return call if self.id is None else {**call, "id": self.id}

    def __str__(self) -> str:
        given = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.arguments.items())
        return f"{self.name}({', '.join(given)})"


class Block(NamedTuple):
    """What was read at a mark: the calls, and where the text goes on.  Without calls it was ordinary text."""

    calls: tuple[ToolCall, ...]
    end: int


Schemas = Mapping[str, Mapping[str, Any]]
"""Name of a tool -> its parameters' JSON schemas by name."""


class ToolCallForm(Spec):
    """One way to write tool calls into an answer.

    The reader of an answer looks for the marks and calls :meth:`read` at each; all text else is content.  ``read`` must
    not change its mind: what it returns for the beginning of a text, it returns for the whole.
    """

    marks: ClassVar[tuple[str, ...]] = ()
    """Literal texts, anywhere in an answer, at which calls begin."""
    first_marks: ClassVar[tuple[str, ...]] = ()
    """Marks that count only where no content stands before them."""
    wrappers: ClassVar[tuple[str, ...]] = ()
    """Marks around calls that say nothing: left out where they stand beside a call."""
    silent: ClassVar[tuple[str, ...]] = ()
    """Marks that are never content, such as the tokens that begin a message in a message."""

    def read(self, text: str, start: int, schemas: Schemas, *, final: bool) -> Block | None:
        """Return the calls whose mark stands at *start*; None where more text is needed to tell.

        *final* says that no more will come: then None means that this is no call.
        """
        raise NotImplementedError
