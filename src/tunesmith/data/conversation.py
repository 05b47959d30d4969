"""The one shape of training data: a conversation, whatever file it came from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record was read: file (or Hub name) and line, counted from 1 (the row, where a file has no lines)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a source before a format has read it."""

    values: dict[str, Any]
    origin: Origin


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read, and why."""

    origin: Origin
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}"


def normal_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as values, as chat templates expect them.

    OpenAI's clients send them as JSON text.  Raises ``ValueError`` for a call without a name, or whose arguments are
    no object.
    """
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tool call without the name of a function: {dict(call)!r}")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        arguments = json.loads(arguments)
    arguments = arguments or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"arguments of the tool call {name} are no object: {arguments!r}")
    kept = {key: value for key, value in call.items() if key not in ("type", "function", "name", "arguments")}
    return {"type": "function", "function": {"name": name, "arguments": dict(arguments)}, **kept}


def call_as_text(call: Mapping[str, Any]) -> str:
    """Return a tool call as one line of JSON, name and arguments: how answers of any template are compared."""
    function = normal_tool_call(call)["function"]
    return json.dumps(function, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.  ``trained`` says whether the turn is learnt; ``None`` leaves it to the stage, ``False`` is never.

    ``name`` and ``tool_call_id`` tie a tool's result to its call; some templates print them.  ``weight`` is how much
    each of its tokens counts where it is learnt.  ``parts`` are the texts that *content* joins, where the row had
    several: a template may write something between them.  The arguments of tool calls are values: given as JSON text,
    they are read (``ValueError`` where that is no object).
    """

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    trained: bool | None = None
    name: str | None = None
    tool_call_id: str | None = None
    weight: float = 1.0
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tool_calls:
            object.__setattr__(self, "tool_calls", tuple(map(normal_tool_call, self.tool_calls)))

    def as_template_input(self) -> dict[str, Any]:
        """Return the message as chat templates expect it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue of messages, or a plain ``text`` (then ``messages`` is empty).

    Of a pair, ``messages`` are the prompt and the ending that was preferred, so that whoever knows nothing of pairs
    reads a dialogue that ends well; ``rejected`` is the other ending of the same prompt.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    rejected: tuple[Message, ...] = ()
    """The ending that was not preferred; empty where there is no pair."""
    shared: int = 0
    """How many of a pair's ``messages`` are the prompt that both endings follow."""
    label: bool | None = None
    """Whether the answer was liked, where it was judged alone; ``None`` where nobody did."""
    label_weight: float = 1.0
    """How much that judgement counts."""
    margin: float = 0.0
    """By how much the chosen ending of a pair is better, where the data says so."""
    rating: str | float | None = None
    """The class or the number that belongs to the whole; ``None`` where there is none."""
    steps: tuple[str, ...] = ()
    """The steps of the last answer, where they were judged one by one …"""
    step_labels: tuple[bool, ...] = ()
    """… and whether each is right."""
    origin: Origin = field(default=Origin("memory", 0), compare=False)

    @property
    def chosen(self) -> tuple[Message, ...]:
        """The preferred ending of a pair; empty where there is none."""
        return self.messages[self.shared :] if self.rejected else ()

    def ending_rejected(self) -> "Conversation":
        """Return the dialogue with the other ending of its pair, alone."""
        return replace(self, messages=self.messages[: self.shared] + self.rejected, rejected=(), shared=0)

    def prompt(self) -> tuple[Message, ...]:
        """Return the messages before the last assistant turn: what generation starts from."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "assistant":
                return self.messages[:index]
        return self.messages

    def reference_calls(self) -> tuple[dict[str, Any], ...]:
        """Return the tool calls of the last assistant turn."""
        return next((m.tool_calls for m in reversed(self.messages) if m.role == "assistant"), ())

    def reference(self) -> str:
        """Return the last assistant turn's content: what a good answer looks like; empty where there is none."""
        for message in reversed(self.messages):
            if message.role == "assistant":
                return message.content
        return ""


class RowError(ValueError):
    """A record that a format cannot read: where in it (``messages[2].content``) and what is wrong there."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place, self.message = place, message
