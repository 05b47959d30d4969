"""Find the form in which a chat template writes tool calls: render a known call, see which form reads it back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.templates.replies import REASONING_MARKS, read_reply, same_calls
from tunesmith.templates.tool_calls import TOOL_CALL_FORMS, ToolCall, ToolCallForm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_CALL = ToolCall("get_weather", {"city": 'Sant "Elm", 上海 {x}', "days": 3}, "abcdef123")
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city."},
                "days": {"type": "integer", "description": "How many days."},
            },
            "required": ["city", "days"],
        },
    },
}
_QUESTION = {"role": "user", "content": "How is the weather?"}


@dataclass(frozen=True, slots=True)
class CallInput:
    """How a template wants to be given a message that calls tools; most take what OpenAI's format says."""

    text_arguments: bool = False
    """Arguments as JSON text, which the template prints as it is (DeepSeek R1)."""
    no_content: bool = False
    """No content instead of an empty one, where only then the template looks for calls; transformers drops ``None``."""
    flat: bool = False
    """Name and arguments beside ``function``, too."""

    def adapt(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return *message*, as ``Message.as_template_input`` makes it, the way the template wants it."""
        calls = message.get("tool_calls")
        if not calls:
            return message
        content = None if self.no_content and not message["content"] else message["content"]
        return {**message, "content": content, "tool_calls": [self._adapt_call(call) for call in calls]}

    def _adapt_call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if self.text_arguments:
            function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        return {**call, "function": function, **(function if self.flat else {})}


_INPUTS = tuple(
    CallInput(text, none, flat) for flat in (False, True) for none in (False, True) for text in (False, True)
)


@dataclass(frozen=True, slots=True)
class FoundForm:
    """The form of a template's calls, and how it takes them; ``form`` is None where no form reads them back.

    *reason* says why there is none, or that generation would stop before a call.
    """

    form: ToolCallForm | None
    input: CallInput
    reason: str = ""


def find_form(apply: Callable[..., str], stops: Sequence[str]) -> FoundForm:
    """Return the form in which the template behind *apply* writes calls.

    ``apply(messages, tools=…, prompt=…)`` renders messages as templates get them, and raises ``ValueError`` where the
    template refuses; *stops* are the tokens at which generation stops.  A form counts only if it gives back exactly
    the call that was rendered.
    """
    message = {"role": "assistant", "content": "", "tool_calls": [_CALL.as_message_part()]}
    forms = [TOOL_CALL_FORMS.get(name)() for name in TOOL_CALL_FORMS.names()]
    reasons = []
    for each in _INPUTS:
        try:
            answer, prompt = _answer(apply, each.adapt(message), stops)
        except ValueError as error:
            reasons.append(str(error))
            continue
        for form in forms:
            reply = read_reply(answer, form, tools=[_TOOL], prompt=prompt)
            if same_calls(reply.calls, [_CALL]):
                return FoundForm(form, each, _stopped(answer, stops))
        reasons.append(f"no form reads this call: {answer[:200]!r}")
    return FoundForm(None, CallInput(), reasons[0])


def _answer(apply: Callable[..., str], message: dict[str, Any], stops: Sequence[str]) -> tuple[str, str]:
    """Return *message* as serving sees it, after the prompt and before a stop token, and the prompt.

    A stop token before the call does not count here: the form is the same, and a reason is given.
    """
    prompt = apply([_QUESTION], tools=[_TOOL], prompt=True)
    through = apply([_QUESTION, message], tools=[_TOOL], prompt=False)
    if not through.startswith(prompt):  # history leaves out the reasoning that the prompt opens, or opens and closes
        prompt = _without_reasoning(prompt)
    if through.count(_CALL.name) == prompt.count(_CALL.name):
        raise ValueError("the template does not write tool calls")
    if not through.startswith(prompt):  # instructions move to the end (Command R): the call is there, among other text
        asked = through.rindex(_QUESTION["content"]) + len(_QUESTION["content"])
        before = through[asked : through.rindex(_CALL.name)]
        prompt = through[: asked + max((before.rfind(stop) + len(stop) for stop in stops if stop in before), default=0)]
    answer = through[len(prompt) :]
    called = answer.rindex(_CALL.name)
    ends = [answer.index(stop, called) for stop in stops if stop and stop in answer[called:]]
    return answer[: min(ends, default=None)], prompt


def _stopped(answer: str, stops: Sequence[str]) -> str:
    early = [stop for stop in stops if stop and stop in answer]
    return f"generation stops at {early[0]}, which stands before the call" if early else ""


def _without_reasoning(prompt: str) -> str:
    marks = [mark.rstrip() for pair in REASONING_MARKS for mark in pair]
    while found := next((mark for mark in marks if prompt.rstrip().endswith(mark)), None):
        prompt = prompt.rstrip().removesuffix(found)
    return prompt.rstrip()
