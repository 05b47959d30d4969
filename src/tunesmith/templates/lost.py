"""What a template was given and did not write: tools, calls, reasoning, a whole message."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tunesmith.data.conversation import Conversation, Message
    from tunesmith.templates.chat import ChatTemplate
    from tunesmith.templates.turns import Turn

_SHORT = 12  # characters of a result that may well stand elsewhere in a prompt
_UNLIKELY = "qzvx result xvzq"
_CLOSING = re.compile(r"</(?:mm:|seed:)?think>")
_SPACE = re.compile(r"\s+")


def strip_thought(content: str) -> tuple[str, str]:
    """Return the reasoning in *content*, as some data has it, and the answer after it, both without space around."""
    found = None
    for found in _CLOSING.finditer(content):  # noqa: B007 - the last one
        pass
    if found is None:
        return "", content.strip()
    thought = content[: found.start()].strip()
    return re.sub(r"^<(?:mm:|seed:)?think>\s*", "", thought), content[found.end() :].strip()


def is_written(said: str, text: str) -> bool:
    """Say whether *text* holds what was *said*, but for white space and the escapes of JSON."""
    said = said.strip()
    if said in text:
        return True
    bare = _SPACE.sub("", text)
    return any(_SPACE.sub("", each) in bare for each in _spellings(said))


def missing_calls(message: Message, reply: str) -> str:
    """Return which tool call of *message* its *reply* lacks, in words; nothing where all are there."""
    for call in message.tool_calls:
        function = call["function"]
        if function["name"] not in reply:
            return f"call of {function['name']}"
        for path, value in leaves(function["arguments"]):
            if not any(each in reply for each in _spellings(value)) and not is_written(str(value), reply):
                return f"argument {path} of the call of {function['name']}"
    return ""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values within *value*, each with the path to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def tool_name(tool: Mapping[str, Any]) -> str:
    """Return the name of a declared tool."""
    return str(tool.get("function", tool).get("name", ""))


def _spellings(value: Any) -> list[str]:
    """Return how templates write a value: as JSON, with and without escapes, as text, as Python, as XML."""
    if isinstance(value, str):
        escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return [value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1], escaped]
    return [json.dumps(value), str(value), str(value).lower()] + ([""] if value is None else [])


def find_lost(template: ChatTemplate, conversation: Conversation, turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """Return what of *conversation* is not in the text of *turns*: its kind, and what exactly, in words.

    Answers are not asked about: a turn that lacks what it says or calls is no turn.
    """
    lost: list[tuple[str, str]] = []
    for tool in conversation.tools:
        if tool_name(tool) not in turns[0].prompt or _says_tools_anyway(template, conversation, turns[0]):
            lost.append(("tools", f"the declared tool {tool_name(tool)}"))
            break
    seen = 0
    for turn in turns:
        for index in range(seen, turn.index):
            message = conversation.messages[index]
            said = strip_thought(message.content)[1] if message.role == "assistant" else message.content
            if (said and not is_written(said, turn.prompt)) or _stands_by_chance(template, conversation, turn, index):
                lost.append(("messages", f"the content of message {index} ({message.role})"))
            elif message.tool_calls and (call := missing_calls(message, turn.prompt)):
                lost.append(("calls", f"the {call}"))
        seen = turn.index
        if turn.index < len(conversation.messages):
            reasoning = conversation.messages[turn.index].reasoning
            if reasoning and not is_written(reasoning, turn.reply):
                lost.append(("reasoning", f"the reasoning of message {turn.index}"))
    return lost


def _says_tools_anyway(template: ChatTemplate, conversation: Conversation, turn: Turn) -> bool:
    """Say whether a prompt that names tools does so only because a message does."""
    messages = conversation.messages[: turn.index]
    if not any(tool_name(tool) in m.content for tool in conversation.tools for m in messages):
        return False
    return template.render(messages, tools=(), prompt=True) == turn.prompt


def _stands_by_chance(template: ChatTemplate, conversation: Conversation, turn: Turn, index: int) -> bool:
    """Say whether a tool's result, as short as ``18``, is in a prompt only because something else is alike."""
    message = conversation.messages[index]
    if message.role != "tool" or not 0 < len(message.content) < _SHORT:
        return False
    messages = list(conversation.messages[: turn.index])
    messages[index] = replace(message, content=_UNLIKELY, parts=())
    return _UNLIKELY not in template.render(messages, tools=conversation.tools, prompt=True)
