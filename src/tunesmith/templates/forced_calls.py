"""The frame in which a template writes a tool call: what an answer begins with that is made to call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.conversation import Message
from tunesmith.templates.replies import open_reasoning, read_reply, same_calls
from tunesmith.templates.tool_calls import ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tunesmith.templates.chat import ChatTemplate

_ARGUMENTS = {"probe": "so be it"}
_QUESTION = Message("user", "Go ahead.")


@dataclass(frozen=True, slots=True)
class CallFrame:
    """A call as text: *before*, JSON, *after*.

    The JSON is an object of the function's name and its arguments under these keys; or, where they are empty, the
    arguments alone, and the name stands in *before*.
    """

    before: str
    after: str
    name_key: str = ""
    arguments_key: str = ""

    def schema(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the JSON schema of a call of one of *tools* (OpenAI's); with the arguments alone there is one tool."""
        if not self.name_key:
            return _parameters(tools[0])
        choices = [self._call_schema(tool) for tool in tools]
        return choices[0] if len(choices) == 1 else {"anyOf": choices}

    def _call_schema(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        name = {"const": tool["function"]["name"]}
        return {
            "type": "object",
            "properties": {self.name_key: name, self.arguments_key: _parameters(tool)},
            "required": [self.name_key, self.arguments_key],
            "additionalProperties": False,
        }


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    return tool["function"].get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}


def find_frame(template: ChatTemplate, tools: Sequence[Mapping[str, Any]]) -> CallFrame | None:
    """Return how *template* writes a call of the first of *tools*; None where the arguments are not written as JSON.

    It is told by rendering a known call; the frame counts only if the call is read back from it.
    """
    form = template.call_form.form
    if form is None:
        return None
    call = ToolCall(str(tools[0]["function"]["name"]), _ARGUMENTS, "abcdef123")
    answer = Message("assistant", "", tool_calls=(call.as_message_part(),))
    try:
        prompt = template.render([_QUESTION], tools=tools, prompt=True)
        through = template.render([_QUESTION, answer], tools=tools, prompt=False)
    except ValueError:
        return None
    # history may leave out the reasoning that the prompt has opened: then the answer begins by closing it
    shared = next((n for n, (one, other) in enumerate(zip(prompt, through, strict=False)) if one != other), len(prompt))
    closing = open_reasoning(prompt)
    begin = "" if closing is None or through.startswith(prompt) else f"{closing}\n\n"
    if shared < len(prompt) and not begin:
        return None
    written = through[shared:]
    for start, end, frame in _objects(written, call):
        ends = [place for stop in template.stops if stop and (place := written.find(stop, end)) >= 0]
        after = written[end : min(ends, default=len(written))]
        found = CallFrame(begin + written[:start], after, *frame)
        text = found.before + written[start:end] + after
        control = [str(token) for token in template.tokenizer.all_special_tokens]
        if same_calls(read_reply(text, form, tools=tools, prompt=prompt, control=control).calls, [call]):
            return found
    return None


def call_texts(template: ChatTemplate, tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Return how calls of *tools* are written, for the constraint ``tool_calls``.

    None where they are not written as JSON after a mark, or where the mark is a control token, which is no text.
    """
    frame = find_frame(template, tools)
    form = template.call_form.form
    if frame is None or form is None:
        return None
    frames = [(frame, tools)] if frame.name_key else [(find_frame(template, [tool]), [tool]) for tool in tools]
    special = set(map(str, template.tokenizer.all_special_tokens))
    found = []
    for each, of in frames:
        mark = next((m for m in form.marks if each and m in each.before and m not in special), None)
        if each is None or mark is None:
            return None
        begin = each.before[each.before.index(mark) :]
        found.append({"begin": begin, "mark": mark, "json_schema": each.schema(of), "end": each.after})
    return found


def _objects(text: str, call: ToolCall) -> Iterator[tuple[int, int, tuple[str, str]]]:
    """Yield where the JSON of *call* stands in *text*, with the keys of name and arguments; the outermost first."""
    start = -1
    while (start := text.find("{", start + 1)) >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            continue
        keys = {json.dumps(each, sort_keys=True): key for key, each in value.items()}
        name, arguments = keys.get(json.dumps(call.name)), keys.get(json.dumps(call.arguments))
        if name is not None and arguments is not None and len(value) == 2:
            yield start, end, (name, arguments)
        elif value == call.arguments:
            yield start, end, ("", "")
