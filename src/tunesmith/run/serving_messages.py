"""Anthropic's messages API over the same answers: its requests become ours, its events are made of our chunks."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError

from tunesmith.run.serving_answers import check_whole
from tunesmith.run.serving_chat_requests import ChatRequest
from tunesmith.run.serving_errors import from_problems
from tunesmith.run.serving_requests import Asked, ShortText, WholeRequest, by_type, is_text

if TYPE_CHECKING:
    from tunesmith.generation.requests import Piece
    from tunesmith.run.serving_answers import ChatWriter
    from tunesmith.run.serving_errors import RefusedError


class Text(Asked):
    """A text."""

    type: Literal["text"]
    """Which block it is."""
    text: str
    """The text."""


_Texts = Annotated[Annotated[str, Tag("text")] | Annotated[list[Text], Tag("list")], Discriminator(is_text)]


class Thinking(Asked):
    """What an earlier answer thought."""

    type: Literal["thinking"]
    """Which block it is."""
    thinking: str
    """The thought."""
    signature: str | None = None
    """Empty: nothing is signed."""


class ToolUse(Asked):
    """What an earlier answer called."""

    type: Literal["tool_use"]
    """Which block it is."""
    id: ShortText
    """What the result refers to."""
    name: Annotated[str, Field(min_length=1, max_length=256)]
    """The tool."""
    input: dict[str, Any]
    """Its arguments."""


class ToolResult(Asked):
    """What a tool gave back."""

    type: Literal["tool_result"]
    """Which block it is."""
    tool_use_id: ShortText
    """The call."""
    content: _Texts | None = None
    """The result."""
    is_error: Literal[False] | None = None
    """Templates have no place for it: say so in the content."""


_Blocks = list[
    Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[Thinking, Tag("thinking")]
        | Annotated[ToolUse, Tag("tool_use")]
        | Annotated[ToolResult, Tag("tool_result")],
        by_type("text", "thinking", "tool_use", "tool_result"),
    ]
]


class Turn(Asked):
    """One turn of a dialogue."""

    role: Literal["user", "assistant"]
    """Who says it."""
    content: Annotated[Annotated[str, Tag("text")] | Annotated[_Blocks, Tag("list")], Discriminator(is_text)]
    """What is said, as text or as blocks."""


class MessagesTool(Asked):
    """A tool that may be called."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    """Its name."""
    description: str | None = None
    """What it is for."""
    input_schema: dict[str, Any]
    """The JSON schema of its arguments."""
    type: Literal["custom"] | None = None
    """Custom: there are no others here."""


class MessagesChoice(Asked):
    """Whether a tool is called."""

    type: Literal["auto", "any", "tool", "none"]
    """Any is some tool, tool the one that is named."""
    name: ShortText | None = None
    """The tool."""
    disable_parallel_tool_use: bool = False
    """Whether an answer may call once only."""


class MessagesMetadata(Asked):
    """Who asks; nothing is done with it."""

    user_id: ShortText | None = None
    """Who asks."""


class MessagesRequest(WholeRequest):
    """``/v1/messages``."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """The base, an adapter or a blend."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Longest answer."""
    messages: Annotated[list[Turn], Field(min_length=1, max_length=10_000)]
    """The dialogue so far."""
    system: _Texts | None = None
    """System prompt."""
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=500)]], Field(max_length=16)] | None
    ) = None
    """Texts that end an answer."""
    stream: bool = False
    """Send the answer piece by piece."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample only from the likeliest tokens that together reach this probability."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Sample only from so many of the likeliest tokens."""
    tools: Annotated[list[MessagesTool], Field(max_length=128)] | None = None
    """What may be called."""
    tool_choice: MessagesChoice | None = None
    """Whether something is called."""
    metadata: MessagesMetadata | None = None
    """Who asks; nothing is done with it."""

    def as_chat(self) -> ChatRequest:
        """Return the same request in OpenAI's form; raise :class:`RefusedError` for what does not fit together."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens, "stream": self.stream}
        body |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        body["stop"] = self.stop_sequences or None
        system = [{"role": "system", "content": _joined(self.system)}] if self.system else []
        body["messages"] = [*system, *(message for turn in self.messages for message in _messages(turn))]
        if self.tools:
            body["tools"] = [_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            body["tool_choice"] = _choice(self.tool_choice)
            body["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        try:
            return ChatRequest.model_validate(body)
        except ValidationError as error:
            raise from_problems(error.errors(include_url=False), body) from None


def _joined(content: str | list[Text] | None) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content or ())


def _messages(turn: Turn) -> list[dict[str, Any]]:
    """Return *turn* as OpenAI's messages: results of tools are messages of their own, before what is said."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    texts = [block.text for block in turn.content if isinstance(block, Text)]
    thoughts = [block.thinking for block in turn.content if isinstance(block, Thinking)]
    calls = [
        {"id": block.id, "function": {"name": block.name, "arguments": block.input}}
        for block in turn.content
        if isinstance(block, ToolUse)
    ]
    results = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _joined(block.content)}
        for block in turn.content
        if isinstance(block, ToolResult)
    ]
    said = {"role": turn.role, "content": "\n".join(texts), "tool_calls": calls or None}
    said["reasoning_content"] = "\n".join(thoughts) or None
    return [*results, *([said] if texts or thoughts or calls or not results else [])]


def _tool(tool: MessagesTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _choice(choice: MessagesChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def messages_error(data: dict[str, Any]) -> dict[str, Any]:
    """Return OpenAI's error object as Anthropic's."""
    kind = {"server_error": "api_error"}.get(data["error"]["type"], data["error"]["type"])
    return {"type": "error", "error": {"type": kind, "message": data["error"]["message"]}}


class MessagesAnswer:
    """An answer as a message of blocks, or as the events that build it up."""

    last_event = ""
    """What a stream ends with, after its events."""

    def __init__(self, model: str, writer: ChatWriter, prompt_tokens: int) -> None:
        self._writer, self._prompt_tokens = writer, prompt_tokens
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._open = ""
        self._blocks = 0
        self._stop: tuple[str | None, str | None] = (None, None)

    def begin(self) -> list[dict[str, Any]]:
        """Return the event that begins the message, and what we write of it."""
        usage = {"input_tokens": self._prompt_tokens, "output_tokens": 0}
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return [{"type": "message_start", "message": message}, *self._events(self._writer.begin())]

    def feed(self, index: int, piece: Piece) -> list[dict[str, Any]]:  # noqa: ARG002 - there is one choice
        """Return the events that *piece* makes; raise :class:`RefusedError` for an answer cut off."""
        check_whole(piece, self._writer)
        events = self._events(self._writer.feed(piece))
        if piece.finish_reason is not None:
            events += self._close()
            reason = self._writer.choice()["finish_reason"]
            ended = "stop_sequence" if piece.stop is not None else "end_turn"
            reasons = {"tool_calls": "tool_use", "length": "max_tokens"}
            self._stop = reasons.get(reason, ended), piece.stop
        return events

    def error(self, refused: RefusedError) -> dict[str, Any]:
        """Return the event that says why the answer was cut off."""
        return messages_error(refused.as_data())

    def is_done(self, index: int) -> bool:
        """Say whether the answer needs no more pieces."""
        assert index == 0
        return self._writer.done

    def end(self, prompt_tokens: int, completion_tokens: int) -> list[dict[str, Any]]:
        """Return the last events."""
        reason, sequence = self._stop
        usage = {"input_tokens": prompt_tokens, "output_tokens": completion_tokens}
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def body(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """Return the whole message."""
        message: dict[str, Any] = self._writer.choice()["message"]
        blocks: list[dict[str, Any]] = []
        if message.get("reasoning_content"):
            blocks.append({"type": "thinking", "thinking": message["reasoning_content"], "signature": ""})
        if message["content"]:
            blocks.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls", ()):
            arguments = json.loads(call["function"]["arguments"])
            blocks.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": arguments})
        usage = {"input_tokens": prompt_tokens, "output_tokens": completion_tokens}
        reason, sequence = self._stop
        return {**self._head, "content": blocks, "stop_reason": reason, "stop_sequence": sequence, "usage": usage}

    def _events(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        for choice in choices:
            delta = choice["delta"]
            for field, kind, name in (("reasoning_content", "thinking", "thinking"), ("content", "text", "text")):
                if delta.get(field):
                    events += self._into(kind, {"type": kind, name: ""})
                    events.append(self._delta({"type": f"{kind}_delta", name: delta[field]}))
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                if "name" in function:
                    block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
                    events += self._into(f"call {call['index']}", block)
                else:
                    events.append(self._delta({"type": "input_json_delta", "partial_json": function["arguments"]}))
        return events

    def _into(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what ends the block that is open and begins another, unless it is this one."""
        if self._open == kind:
            return []
        events = self._close()
        self._open = kind
        return [*events, {"type": "content_block_start", "index": self._blocks, "content_block": block}]

    def _close(self) -> list[dict[str, Any]]:
        if not self._open:
            return []
        self._open = ""
        self._blocks += 1
        return [{"type": "content_block_stop", "index": self._blocks - 1}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}
