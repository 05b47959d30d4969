"""What of a conversation is learnt, and how much each part of it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tunesmith.templates.lost import strip_thought
from tunesmith.templates.replies import REASONING_MARKS
from tunesmith.templates.turns import SENTINEL, Turn, find_turn

if TYPE_CHECKING:
    from tunesmith.data.conversation import Conversation, Message
    from tunesmith.templates.chat import ChatTemplate


@dataclass(frozen=True, slots=True)
class Learning:
    """A stage's choice; what a message says of itself (``trained``, ``weight``) goes before it."""

    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns."""
    roles: Sequence[str] = ("assistant",)
    """Whose messages."""
    prompt_weight: float = 0.0
    """How much each token of a prompt counts."""
    reasoning: bool = True
    tool_calls: bool = True

    def weights(self, messages: Sequence[Message]) -> list[float]:
        """Return how much the tokens of each message count."""
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        skipped = set(answers[:-1]) if self.turns == "last" else set()
        return [
            message.weight if _is_learnt(message, index not in skipped and message.role in self.roles) else 0.0
            for index, message in enumerate(messages)
        ]


ALL_ANSWERS = Learning()


def _is_learnt(message: Message, chosen: bool) -> bool:
    return chosen if message.trained is None else message.trained


@dataclass(frozen=True, slots=True)
class Choice:
    """What of one conversation is learnt: messages by their index."""

    weights: list[float]
    """How much the tokens of each message count."""
    answers: list[tuple[int, list[int]]]
    """The assistant's turns to render, each with those before it that others wrote and that are learnt with it."""
    rest: list[int]
    """What others wrote after the last answer, and is learnt."""


def choose(conversation: Conversation, learning: Learning) -> Choice:
    """Return what of *conversation* is learnt; raise ``ValueError`` where nothing is."""
    messages = conversation.messages
    if not messages:
        raise ValueError("plain text, not a dialogue; use stage: pretrain")
    weights = learning.weights(messages)
    if not any(weights):
        raise ValueError("no assistant turn to learn" if learning.roles == ("assistant",) else "no message to learn")
    answers, read = [], []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            read += [index] if weights[index] and message.content.strip() else []
        elif weights[index] or read or learning.prompt_weight:
            answers.append((index, read))
            read = []
    return Choice(weights, answers, read)


def find_turns(
    template: ChatTemplate,
    conversation: Conversation,
    learning: Learning,
    choice: Choice,
    rendered: Mapping[int, tuple[str, str]],
) -> list[Turn]:
    """Return the turns that a conversation is learnt in; raise ``ValueError`` with the reason where it cannot be.

    *rendered* may hold the two renders of each answer, if they were made before.
    """
    messages, weights = conversation.messages, choice.weights
    turns: list[Turn] = []
    for index, read in choice.answers:
        turn = find_turn(template, conversation, index, rendered.get(index))
        if turn.how == "joined":  # the template knows no turn of the messages before it alone
            turns = [each for each in turns if each.prompt != turn.prompt]
        if weights[index] != turn.weight:
            turn = replace(turn, weight=weights[index])
        if weights[index] and not (learning.reasoning and learning.tool_calls):
            turn = _mark_reply(turn, messages[index], template.stops, learning)
        turns.append(_mark_prompt(template, conversation, turn, weights, read) if read else turn)
    if choice.rest:
        text = template.render(messages, tools=conversation.tools, prompt=False)
        whole = Turn(len(messages), text, "", is_answer=False)
        turns.append(_mark_prompt(template, conversation, whole, weights, choice.rest))
    if not any(turn.weight or turn.marks for turn in turns):
        raise ValueError("nothing to learn: all that the assistant wrote is reasoning or tool calls")
    return turns


def _mark_reply(turn: Turn, message: Message, stops: Sequence[str], learning: Learning) -> Turn:
    """Return *turn* with the parts of its reply marked that are not learnt."""
    reply, marks, at = turn.reply, [], 0
    thought = (message.reasoning or strip_thought(message.content)[0]).strip()
    answer = strip_thought(message.content)[1]
    if thought:
        opened = max(
            (reply.find(opening) + len(opening) for opening, _ in REASONING_MARKS if opening in reply), default=0
        )
        begin = reply.find(thought, opened)
        if begin >= 0:
            at = begin + len(thought)
            marks += [] if learning.reasoning else [(begin, at)]
            at = max((reply.index(end, at) + len(end) for _, end in REASONING_MARKS if end in reply[at:]), default=at)
        elif not learning.reasoning and thought in "".join(reply.split()):
            raise ValueError(f"message {turn.index}: where its reasoning stands cannot be told")
    if message.tool_calls and not learning.tool_calls:
        begin = reply.index(answer, at) + len(answer)
        end = next((len(reply) - len(stop) for stop in stops if reply.endswith(stop)), len(reply))
        if reply.find(message.tool_calls[0]["function"]["name"], at) < begin:
            raise ValueError(
                f"message {turn.index}: the template writes calls before the answer: they cannot be told apart"
            )
        marks.append((begin, end))
    left = "".join(letter for index, letter in enumerate(reply) if not any(a <= index < b for a, b in marks))
    for stop in stops:
        left = left.replace(stop, "")
    if marks and not left.strip():  # an end alone would teach to end at once
        return replace(turn, weight=0.0)
    start = len(turn.prompt)
    return replace(turn, marks=tuple((start + begin, start + end, 0.0) for begin, end in marks))


def _mark_prompt(
    template: ChatTemplate, conversation: Conversation, turn: Turn, weights: Sequence[float], learnt: Sequence[int]
) -> Turn:
    """Return *turn* with the messages *learnt* marked in its prompt, each through the end of its turn if that follows.

    Each is found by putting another text in its place; what stands around that must be what stands around the message.
    """
    others = {index: f"{SENTINEL} {index}." for index in learnt}
    messages = [
        replace(message, content=others.get(index, message.content), parts=() if index in others else message.parts)
        for index, message in enumerate(conversation.messages[: turn.index])
    ]
    is_last = turn.index == len(conversation.messages)
    text = template.render(messages, tools=conversation.tools, prompt=not is_last)
    marks, at = list(turn.marks), 0
    for index in sorted(learnt, key=lambda each: text.find(others[each])):
        before, found, after = text.partition(others[index])
        content = conversation.messages[index].content
        said = next((said for said in (content, content.strip()) if turn.prompt[at:].startswith(before + said)), None)
        if not found or others[index] in after or said is None:
            raise ValueError(f"message {index}: where the template writes it cannot be told, so it cannot be learnt")
        begin, at = at + len(before), at + len(before) + len(said)
        end = next((len(stop) for stop in template.stops if turn.prompt.startswith(stop, at)), 0)
        marks.append((begin, at + end, weights[index]))
        text = after
    return replace(turn, marks=tuple(marks))
