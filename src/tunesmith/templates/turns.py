"""Assistant turns as text: what serving would be given for each, and what the model then has to write.

A turn is told from two renders: the messages before it with the generation prompt, and the messages through it.  Where
the second goes on from the first, what it adds is the reply, and nothing else is asked.  Where it does not, the
template writes history otherwise than it asks generation to go on, in one of a few ways that can be told apart by
rendering: it opens or closes reasoning that the answer does not have, it rewrites earlier turns, or it writes another
heading.  Each way is accepted only where the texts prove it; else the turn is refused with the reason.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tunesmith.templates.lost import is_written, missing_calls, strip_thought
from tunesmith.templates.replies import REASONING_MARKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tunesmith.data.conversation import Conversation, Message
    from tunesmith.templates.chat import ChatTemplate

How = Literal["follows", "closed", "switched", "opened", "rewritten", "joined", "placed"]
"""How a turn was told: see :func:`find_turn`."""

SENTINEL = "qzvx sentinel xvzq"
"""A text that stands in no data and in no template, put in the place of one to see where that goes."""

# arguments by which templates turn reasoning on and off
SWITCHES = ("enable_thinking", "thinking")

# gpt-oss ends reasoning with a token that ends whole messages, too
_MARKS = [(opening.strip(), closing.strip()) for opening, closing in REASONING_MARKS if closing != "<|end|>"]
_OPENS, _CLOSES = ("|".join(re.escape(pair[side]) for pair in _MARKS) for side in (0, 1))
# reasoning that is opened, opened and closed, or closed alone
_THINKING = rf"(?:(?P<opened>{_OPENS})\s*)?(?P<closed>{_CLOSES})?\s*"
_AT_END = re.compile(rf"(?:{_OPENS}|{_CLOSES})\s*$")
_TAIL = re.compile(rf"(?=(?:{_OPENS}|{_CLOSES})){_THINKING}$")
_TAG, _WORD = re.compile(r"<[^<>]*>|\[[^\[\]]*\]"), re.compile(r"\w")
_OPENED = re.compile(rf"\s*(?:{_OPENS})")
_EMPTY = re.compile(rf"(?:\s*(?:{_OPENS}))?\s*(?:{_CLOSES})|")


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn as text; ``reply`` goes through the token that ends it, if the template writes one."""

    index: int
    prompt: str
    reply: str
    how: How = "follows"
    weight: float = 1.0
    marks: tuple[tuple[int, int, float], ...] = ()
    """Parts of prompt and reply together with a weight of their own: begin, end, weight."""

    is_answer: bool = True
    """Whether there is a reply; else the turn is what others said after the last answer."""


def find_turn(
    template: ChatTemplate, conversation: Conversation, index: int, rendered: tuple[str, str] | None = None
) -> Turn:
    """Return the assistant turn that is message *index*; raise ``ValueError`` with the reason where it cannot be told.

    ``follows``: the render through the turn goes on from its prompt.
    ``closed``: but for an empty reasoning that the prompt has and history leaves out (Gemma 4, DeepSeek V3.2).
    ``switched``: it does so once the template's own switch turns reasoning on or off, as the answer has some or none.
    ``opened``: the prompt opens reasoning, and history drops it (QwQ): the reply is the reasoning, its end, the answer.
    ``rewritten``: earlier turns read otherwise once this one is there; the reply follows the same generation prompt.
    ``joined``: several answers in a row are one turn; it begins where the first of them would.
    ``placed``: the answer stands after another heading than the prompt has (CodeLlama 70B); what stands before it
    there is the prompt.

    *rendered* are the messages before the turn, with the generation prompt, and through it, if they are known.
    """
    message = conversation.messages[index]
    if rendered is not None and not message.reasoning and rendered[1].startswith(rendered[0]):
        with suppress(ValueError):  # as nearly all turns are told; else all ways are tried
            return _through_end(template, Turn(index, rendered[0], rendered[1][len(rendered[0]) :]), message)
    finder = _Finder(template, conversation, index)
    partial: Turn | None = None
    reasons: list[ValueError] = []
    for turn in finder.candidates():
        try:
            whole = _through_end(template, turn, message)
        except ValueError as error:
            reasons.append(error)
            continue
        if not message.reasoning or is_written(message.reasoning, whole.reply):
            return whole
        partial = partial or whole  # all but the reasoning, which another candidate may have
    if partial is not None:
        return partial
    raise ValueError(f"message {index}: {reasons[0] if reasons else finder.explain()}") from None


class _Finder:
    """The ways to tell one turn, each a candidate that has yet to show that it holds what was said."""

    def __init__(self, template: ChatTemplate, conversation: Conversation, index: int) -> None:
        self.template, self.index = template, index
        self.messages, self.tools = conversation.messages, conversation.tools
        self.message = self.messages[index]
        self.prompt, self.through = self._render_both({})

    def candidates(self) -> Iterator[Turn]:
        """Yield what the turn may be, the most certain first."""
        prompt, through = self.prompt, self.through
        if through.startswith(prompt):
            yield Turn(self.index, prompt, through[len(prompt) :])
        switched = self._switch()
        if switched is not None and switched[1].startswith(switched[0]):
            yield Turn(self.index, switched[0], switched[1][len(switched[0]) :], "switched")
        for pair in ((prompt, through), switched):
            if pair is not None:
                yield from self._after_reasoning(*pair)
        if not through.startswith(prompt):
            yield from self._joined()
            yield from self._rewritten()
            yield from self._placed()

    def explain(self) -> str:
        """Return why there is no candidate."""
        advice = "; give the reasoning, or set template.arguments.enable_thinking: false"
        shared = count_shared(self.prompt, self.through)
        return (
            "the template does not write this answer after its own generation prompt, so its trained tokens cannot be "
            f"told: the prompt ends {self.prompt[-40:]!r}, the whole reads {self.through[-80:]!r}"
            + (advice if "<think>" in self.prompt[shared:] else "")
        )

    def _render_both(self, arguments: dict[str, bool]) -> tuple[str, str]:
        return (
            self.template.render(self.messages[: self.index], tools=self.tools, prompt=True, arguments=arguments),
            self.template.render(self.messages[: self.index + 1], tools=self.tools, prompt=False, arguments=arguments),
        )

    def _render(self, **changed: object) -> str:
        """Return the render through the turn with *changed* fields of its message."""
        messages = [*self.messages[: self.index], replace(self.message, **changed)]  # type: ignore[arg-type]  # fields
        return self.template.render(messages, tools=self.tools, prompt=False)

    def _switch(self) -> tuple[str, str] | None:
        """Return both renders with reasoning switched to what the answer has, if the template has a switch."""
        switch = self.template.thinking_switch
        return None if switch is None else self._render_both({switch: has_reasoning(self.message)})

    def _after_reasoning(self, prompt: str, through: str) -> Iterator[Turn]:
        """Yield what follows reasoning that the prompt opens or closes at its end."""
        tail = _TAIL.search(prompt) if _AT_END.search(prompt) else None
        if tail is None or not through.startswith(base := prompt[: tail.start()]):
            return
        rest = through[len(base) :]
        space = prompt[len(prompt.rstrip()) :]
        empty = _EMPTY.match(rest)
        assert empty is not None, "it matches nothing, too"
        answer = rest[empty.end() :].removeprefix(space) if empty[0] else rest
        if tail["closed"]:
            if not _OPENED.match(answer):  # reasoning after reasoning was closed is none that serving could see
                yield Turn(self.index, prompt, answer, "closed")
        elif self.message.reasoning:
            closing = dict(_MARKS)[tail["opened"]]
            thought = f"{self.message.reasoning.strip()}{space}{closing}{space * 2}"
            yield Turn(self.index, prompt, thought + answer, "opened")
        else:
            yield Turn(self.index, base, rest, "placed")

    def _rewritten(self) -> Iterator[Turn]:
        """Yield what follows the generation prompt where it stands in the render through the turn."""
        history = self.template.render(self.messages[: self.index], tools=self.tools, prompt=False)
        heading = self.prompt[len(history) :] if self.prompt.startswith(history) else ""
        place = self._place()
        if heading.strip() and place is not None:
            begin = self.through.rfind(heading, 0, place[0])
            between = self.through[begin + len(heading) : place[0]]
            if begin >= 0 and not any(stop in between for stop in self.template.stops):
                yield Turn(self.index, self.prompt, self.through[begin + len(heading) :], "rewritten")

    def _placed(self) -> Iterator[Turn]:
        """Yield the answer where it stands, after what prompt and render have in common but for white space."""
        place = self._place() if self.message.content.strip() else None
        if place is None:
            return
        begin, end = place
        shared = min(count_shared(self.prompt, self.through), begin)
        dropped, after = self.prompt[shared:], self.through[end:]
        if self.through[shared:begin].strip() or any(stop in dropped for stop in self.template.stops):
            return  # the render has another heading, or other turns, before the answer
        ends = [after.index(stop) + len(stop) for stop in self.template.stops if stop in after]
        rest = after[: min(ends, default=0)]  # without an end, what follows belongs to no turn
        for stop in self.template.stops:
            rest = rest.removesuffix(stop)
        if not rest.strip():  # else there is more of the turn, which nobody said
            yield Turn(self.index, self.through[:begin], self.through[begin : end + min(ends, default=0)], "placed")

    def _joined(self) -> Iterator[Turn]:
        """Yield a turn of several messages in a row, which the template writes as one."""
        first = self.index
        while first and self.messages[first - 1].role == "assistant":
            first -= 1
        if first == self.index:
            return
        prompt = self.template.render(self.messages[:first], tools=self.tools, prompt=True)
        follows = [Turn(self.index, prompt, self.through[len(prompt) :])] if self.through.startswith(prompt) else []
        for turn in follows or self._after_reasoning(prompt, self.through):
            said = turn.reply[: turn.reply.rfind(self.message.content.strip())]
            earlier = [message.content.strip() for message in self.messages[first : self.index]]
            if all(each in said for each in earlier) and not any(stop in said for stop in self.template.stops):
                yield replace(turn, how="joined")

    def _place(self) -> tuple[int, int] | None:
        """Return where the content, or else the first call's name, stands in the render through the turn.

        It is proved by putting another in its place: what stands around that must be what stands around it.
        """
        said = self.message.content.strip()
        if said:
            other = self._render(content=SENTINEL, parts=())
        elif self.message.tool_calls:
            call = self.message.tool_calls[0]
            said = call["function"]["name"]
            named = {**call, "function": {**call["function"], "name": SENTINEL}}
            other = self._render(tool_calls=(named, *self.message.tool_calls[1:]))
        else:
            return None
        before, found, after = other.partition(SENTINEL)
        if not found or SENTINEL in after or not (self.through.startswith(before) and self.through.endswith(after)):
            return None
        begin, end = len(before), len(self.through) - len(after)
        return (begin, end) if begin <= end and self.through[begin:end].strip() == said else None


def _through_end(template: ChatTemplate, turn: Turn, message: Message) -> Turn:
    """Return *turn* through the token that ends it; raise ``ValueError`` where it lacks what was said."""
    reply = turn.reply
    # reasoning may also stand in the content; templates then change the white space around it
    thought, answer = strip_thought(message.content)
    parts = message.parts if message.parts and not thought else (thought, answer)
    for part in parts:
        if part.strip() not in reply:
            raise ValueError(f"the template does not write the answer {template.encoder.unmark(part.strip())[:40]!r}")
    if lost := missing_calls(message, reply):
        raise ValueError(f"the template does not write the {lost}")
    last = parts[-1].strip() if parts else ""
    said = reply.rfind(last) + len(last) if last else 0
    written = template.encoder.hide(reply)
    for stop in template.stops:
        if stop in written[:said]:
            raise ValueError(f"the template writes {stop!r}, at which a turn ends, before the answer is complete")
    ends = [written.index(stop, said) + len(stop) for stop in template.stops if stop in written[said:]]
    if not ends and not message.tool_calls and _WORD.search(_TAG.sub("", written[said:])):
        raise ValueError(f"the template goes on after the answer, and no known token ends it: {written[said:][:40]!r}")
    reply = reply[: min(ends, default=None)]
    if lost := missing_calls(message, reply):
        raise ValueError(f"the template writes the {lost} after the token that ends the turn")
    return replace(turn, reply=reply)


def has_reasoning(message: Message) -> bool:
    """Say whether an answer has reasoning, in its own field or in the content."""
    return bool((message.reasoning or "").strip() or strip_thought(message.content)[0])


def count_shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how long the beginning is that both have."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
