"""What the conversational formats share: text, OpenAI-style messages, tool calls, the system and tools columns."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.registry import suggest
from tunesmith.data.conversation import Conversation, Message, Record, Role, RowError
from tunesmith.data.describe import describe, names, shorten

SHARED_COLUMNS = {
    "system": "system prompt; empty for none",
    "tools": "tools the model may call, as a list or its JSON text: JSON schemas of functions",
}
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def read_column(values: Mapping[str, Any], column: str) -> Any:
    """Return a required column's value; raise :class:`RowError` where the row has none."""
    if column not in values:
        raise RowError(column, f"is missing; the row has {names(values) or 'nothing'}")
    return values[column]


def read_text(value: Any, place: str) -> str:
    """Return *value*, a text that may be empty."""
    if not isinstance(value, str):
        raise RowError(place, f"found {describe(value)}; must be text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell a lone surrogate (an emoji cut in two); tokenizers would crash on it much later.
        broken = value[error.start : error.end]
        raise RowError(place, f"character {error.start + 1} is half a character ({ascii(broken)[1:-1]})") from error
    return value


def read_filled_text(value: Any, place: str) -> str:
    """Return *value*, a text that says something."""
    text = read_text(value, place)
    if not text.strip():
        raise RowError(place, "is empty; there must be text")
    return text


def read_optional_text(values: Mapping[str, Any], column: str) -> str:
    """Return a column's text, or nothing where the row has none."""
    value = values.get(column)
    return "" if value is None else read_text(value, column)


def read_list(value: Any, place: str, of: str) -> Sequence[Any]:
    """Return *value*, a list with something in it."""
    if not isinstance(value, list) or not value:
        raise RowError(place, f"found {describe(value)}; must be a list of {of}")
    return value


def read_messages(value: Any, place: str) -> list[Message]:
    """Return the messages in an OpenAI-style list."""
    messages = []
    for index, item in enumerate(read_list(value, place, "messages, each with role and content")):
        message = _read_message(item, f"{place}[{index}]")
        check_order(message.role, index, place)
        messages.append(message)
    return messages


def check_order(role: Role, index: int, place: str) -> None:
    """Refuse a system message that is not the first."""
    if role == "system" and index > 0:
        raise RowError(f"{place}[{index}]", "is a system message; only the first message can be one")


def assemble(record: Record, messages: Sequence[Message], place: str) -> Conversation:
    """Return the conversation with the row's system prompt and tools, if it has a question and an answer to learn."""
    values = record.values
    turns = tuple(messages)
    if system := read_optional_text(values, "system"):
        if turns[0].role != "system":
            turns = (Message("system", system), *turns)
        elif turns[0].content != system:
            raise RowError(
                "system", f"found {shorten(system)}, but {place} begins with another system message; keep one"
            )
    answers = [message for message in turns if message.role == "assistant"]
    if not answers:
        raise RowError(place, "has no assistant turn; there must be at least one answer to learn")
    if turns[0].role == "assistant":
        raise RowError(f"{place}[0]", "is an assistant turn; there must be something before it that it answers")
    if all(message.trained is False for message in answers):
        raise RowError(place, "every assistant turn is marked as not trained; there must be one to learn")
    return Conversation(turns, tools=_read_tools(values.get("tools")), origin=record.origin)


def read_learning(turn: Mapping[str, Any], role: Role, place: str) -> tuple[bool | None, float]:
    """Return whether a turn is learnt, and how much its tokens count, from its ``train`` and ``weight``.

    ``train: false`` or ``weight: 0`` keeps a turn from being learnt; ``train: true`` learns it whatever the stage
    chooses, as a weight does for a turn that is not the assistant's.  ``None`` leaves it to the stage.
    """
    train, weight = turn.get("train"), turn.get("weight")
    if not isinstance(train, bool | None):
        raise RowError(f"{place}.train", f"found {describe(train)}; must be true or false")
    if weight is None:
        return train, 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise RowError(f"{place}.weight", f"found {describe(weight)}; must be a number from 0 on, such as 0, 0.5 or 1")
    if weight == 0 or train is False:
        return False, 1.0
    return (train if role == "assistant" else True), float(weight)


def read_tool_calls(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    """Return tool calls (a list, one alone, or the JSON text of either) as chat templates expect them."""
    calls = _parse_json(value, place)
    if isinstance(calls, dict):
        calls = [calls]
    return tuple(
        _read_tool_call(call, f"{place}[{index}]")
        for index, call in enumerate(read_list(calls, place, "tool calls, each with name and arguments"))
    )


def unknown_role(value: Any, place: str, known: Sequence[str]) -> RowError:
    """Return the error for a role that is none of *known*."""
    close = suggest(value, known) if isinstance(value, str) else ""
    return RowError(place, f"found {describe(value)}; must be one of {names(known)}{close}")


def _read_message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(place, f"found {describe(value)}; must be an object with role and content")
    if "role" not in value and "from" in value:
        column = place.partition("[")[0]
        hint = f"it is sharegpt's: set format: sharegpt and columns: {{conversations: {column}}}"
        raise RowError(f"{place}.role", f"is missing; the turn has {names(value)}; {hint}")
    role = _ROLES.get(str(value.get("role")))
    if role is None:
        raise unknown_role(value.get("role"), f"{place}.role", list(_ROLES))
    calls = value.get("tool_calls")
    trained, weight = read_learning(value, role, place)
    if calls and role != "assistant":
        raise RowError(f"{place}.tool_calls", f"found in a {role} message; only the assistant calls tools")
    content = value.get("content")
    parts = content if isinstance(content, list) else ()
    return Message(
        role=role,
        content="" if content is None and calls else _read_content(content, f"{place}.content", role, bool(calls)),
        reasoning=_read_reasoning(value, place),
        tool_calls=read_tool_calls(calls, f"{place}.tool_calls") if calls else (),
        trained=trained,
        name=_read_label(value, "name", place),
        tool_call_id=_read_label(value, "tool_call_id", place),
        weight=weight,
        parts=tuple(part["text"] for part in parts) if len(parts) > 1 else (),
    )


def _read_content(content: Any, place: str, role: Role, may_be_empty: bool) -> str:
    if isinstance(content, list):
        content = "".join(_read_part(part, f"{place}[{index}]") for index, part in enumerate(content))
    if may_be_empty or role in ("system", "tool"):
        return read_text(content, place)
    return read_filled_text(content, place)


def _read_part(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        found = f"type {kind!r}" if kind else describe(part)
        raise RowError(place, f'found {found}; this version reads text only: {{"type": "text", "text": "…"}}')
    return read_text(part.get("text"), f"{place}.text")


def _read_reasoning(value: Mapping[str, Any], place: str) -> str | None:
    for key in _REASONING_KEYS:
        if value.get(key) is not None:
            return read_text(value[key], f"{place}.{key}")
    return None


def _read_label(value: Mapping[str, Any], key: str, place: str) -> str | None:
    return None if value.get(key) is None else read_text(value[key], f"{place}.{key}")


def _read_tool_call(value: Any, place: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or "name" not in function or "arguments" not in function:
        raise RowError(place, f"found {describe(function or value)}; must be an object with name and arguments")
    name = read_filled_text(function["name"], f"{place}.name")
    arguments = function["arguments"]
    arguments = {} if arguments in (None, "") else _parse_json(arguments, f"{place}.arguments")
    if not isinstance(arguments, dict):
        raise RowError(f"{place}.arguments", f"found {describe(arguments)}; must be an object")
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if value.get("id") is not None:
        call["id"] = value["id"]
    return call


def _read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    if value in (None, ""):
        return ()
    tools = _parse_json(value, "tools")
    if not isinstance(tools, list):
        raise RowError("tools", f"found {describe(tools)}; must be a list of tools")
    return tuple(_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))


def _read_tool(value: Any, place: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(place, f"found {describe(function or value)}; must be an object with name and parameters")
    return value if "function" in value else {"type": "function", "function": value}


def _parse_json(value: Any, place: str) -> Any:
    """Return what a JSON text holds; leave other values alone."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError(place, f"found {describe(value)}, which is not JSON: {error}") from error
