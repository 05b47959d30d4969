"""A list of ``conversations`` turns with ``from`` and ``value``, as ShareGPT and LLaMA-Factory write it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from tunesmith.data.conversation import Conversation, Message, Record, RowError
from tunesmith.data.describe import describe, names
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._endings import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    assemble_pair,
    has_pair,
    read_endings,
    with_label,
)
from tunesmith.data.formats._turns import (
    SHARED_COLUMNS,
    assemble,
    check_order,
    read_column,
    read_filled_text,
    read_learning,
    read_list,
    read_text,
    read_tool_calls,
    unknown_role,
)

_CALL = "function_call"
_USUAL_TAGS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": _CALL,
}
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


class ShareGPT(Format):
    """Read turns by their tags; a function call is part of the assistant turn before it, if there is one."""

    columns = {
        "conversations": "list of turns: from and value",
        **SHARED_COLUMNS,
        **PAIR_COLUMNS,
        **LABEL_COLUMNS,
    }
    required = frozenset({"conversations"})

    role_tag: str = "from"
    """Key of a turn that says who speaks."""

    content_tag: str = "value"
    """Key of a turn that says what."""

    user_tag: str = "human"
    """Who asks; ``human`` and ``user`` are always understood, unless another tag takes the word."""

    assistant_tag: str = "gpt"
    """Who answers; ``gpt``, ``assistant`` and ``model`` are always understood."""

    observation_tag: str = "observation"
    """A tool's result; ``observation`` and ``tool`` are always understood."""

    function_tag: str = "function_call"
    """The assistant's tool calls, as JSON text with name and arguments."""

    system_tag: str = "system"
    """The system prompt."""

    def read(self, record: Record) -> Conversation:
        messages = self._read_turns(read_column(record.values, "conversations"), "conversations")
        if has_pair(record.values):
            return assemble_pair(record, messages, *read_endings(record.values, self._read_turns))
        return with_label(assemble(record, messages, "conversations"), record.values)

    def _read_turns(self, value: Any, place: str) -> list[Message]:
        messages: list[Message] = []
        for index, turn in enumerate(read_list(value, place, "turns")):
            message = self._read_turn(turn, f"{place}[{index}]")
            check_order(message.role, index, place)
            if message.tool_calls and messages and _can_join(messages[-1], message):
                message = _join(messages.pop(), message)
            messages.append(message)
        return messages

    @cached_property
    def _tags(self) -> Mapping[str, str]:
        return {
            **_USUAL_TAGS,
            self.user_tag: "user",
            self.assistant_tag: "assistant",
            self.observation_tag: "tool",
            self.function_tag: _CALL,
            self.system_tag: "system",
        }

    def _read_turn(self, turn: Any, place: str) -> Message:
        if not isinstance(turn, dict):
            raise RowError(
                place, f"found {describe(turn)}; must be an object with {self.role_tag} and {self.content_tag}"
            )
        for key in (self.role_tag, self.content_tag):
            if key not in turn:
                hint = "; it is openai's: set format: openai and columns: {messages: conversations}"
                raise RowError(
                    f"{place}.{key}", f"is missing; the turn has {names(turn)}{hint if 'role' in turn else ''}"
                )
        tag, content = turn[self.role_tag], turn[self.content_tag]
        place_of_content = f"{place}.{self.content_tag}"
        match self._tags.get(tag) if isinstance(tag, str) else None:
            case "user" | "assistant" as role:
                text = read_filled_text(content, place_of_content)
            case "system" | "tool" as role:
                text = read_text(content, place_of_content)
            case "function_call":
                return _read_call(content, place_of_content, *read_learning(turn, "assistant", place))
            case _:
                raise unknown_role(tag, f"{place}.{self.role_tag}", list(self._tags))
        trained, weight = read_learning(turn, role, place)
        return Message(role, text, trained=trained, weight=weight)


def _read_call(content: Any, place: str, trained: bool | None, weight: float) -> Message:
    """Return the assistant turn of a function call: JSON for one call or a list, after thoughts if there are any."""
    reasoning = None
    if isinstance(content, str) and (thought := _THOUGHT.match(read_text(content, place))):
        reasoning, content = thought[1].strip(), content[thought.end() :]
    return Message("assistant", "", reasoning, read_tool_calls(content, place), trained, weight=weight)


def _can_join(before: Message, call: Message) -> bool:
    learnt_alike = (before.trained, before.weight) == (call.trained, call.weight)
    return before.role == "assistant" and learnt_alike and not (before.reasoning and call.reasoning)


def _join(before: Message, call: Message) -> Message:
    return replace(before, reasoning=before.reasoning or call.reasoning, tool_calls=before.tool_calls + call.tool_calls)
