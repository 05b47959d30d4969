"""Prompts of an online stage: what is kept of a conversation among the examples, and the answers sampled to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.conversation import Conversation, Message, Origin
from tunesmith.engine.example import Example
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tunesmith.generation.sampling import Completion
    from tunesmith.templates.chat import ChatTemplate


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A prompt with the conversation that it is from."""

    tokens: NDArray[np.int32]
    conversation: Conversation
    has_reference: bool

    @classmethod
    def of(cls, example: Example) -> Asked:
        """Return what :func:`ask` made *example* of."""
        length, has_reference, _ = example.values
        return cls(example.sequences[0].tokens[:length], conversation_of(example), has_reference)


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """An answer to a prompt, and what it earned where it is judged."""

    asked: Asked
    completion: Completion
    text: str
    reward: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    """What each score gave, before its weight."""
    why: dict[str, str] = field(default_factory=dict)

    def sequence(self) -> TokenSequence:
        """Return prompt and answer, the answer's tokens trained."""
        tokens = np.concatenate([self.asked.tokens, self.completion.tokens])
        weight = np.zeros(len(tokens), np.float32)
        weight[len(self.asked.tokens) :] = 1
        return TokenSequence(tokens, weight)


def ask(conversations: Sequence[Conversation], template: ChatTemplate, longest: int, most: int) -> list[list[Example]]:
    """Return each conversation's prompt as an example; nothing for prompts of more than *longest* tokens.

    The first *most* tokens of the data's own answer follow the prompt where there is one: it is what checks before the
    first step look at, and what a held-out loss is about; nothing is learnt from it.
    """
    talks = [c for c in conversations if c.text is None]
    prompts = iter(template.prompts(talks))
    answers = iter(template.encoder.encode_after([c.reference() for c in talks]))
    texts = iter(template.encode_texts([c.text or "" for c in conversations if c.text is not None]))
    out: list[list[Example]] = []
    for conversation in conversations:
        if conversation.text is None:
            prompt, answer = next(prompts), next(answers)
        else:  # a plain text is gone on with
            prompt, answer = next(texts)[:-1], []
        if len(prompt) > longest or not prompt:
            out.append([])
            continue
        stand_in = [*answer, *template.stop_ids[:1]][:most] if answer else prompt[-1:]
        sequence = TokenSequence.trained_from([*prompt, *stand_in], len(prompt))
        out.append([Example((sequence,), conversation.origin, (len(prompt), bool(answer), as_text(conversation)))])
    return out


def conversation_of(example: Example) -> Conversation:
    """Return the conversation that *example*, of any online stage, was made of: the last of what is kept beside it."""
    return _from_text(example.values[-1], example.origin)


def as_text(conversation: Conversation) -> str:
    """Return what scores may look at as JSON: it is kept among the examples."""
    messages: list[dict[str, Any]] = [asdict(message) for message in conversation.messages]
    usual = asdict(Message("user", ""))
    short = [{k: v for k, v in each.items() if k in ("role", "content") or v != usual[k]} for each in messages]
    kept: dict[str, Any] = {"messages": short}
    if conversation.text is not None:
        kept["text"] = conversation.text
    if conversation.tools:
        kept["tools"] = conversation.tools
    return json.dumps(kept, ensure_ascii=False)


def _from_text(text: str, origin: Origin) -> Conversation:
    kept: dict[str, Any] = json.loads(text)
    messages = tuple(map(_message, kept["messages"]))
    return Conversation(messages, kept.get("text"), tuple(kept.get("tools", ())), origin=origin)


def _message(kept: dict[str, Any]) -> Message:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()}
    return Message(**values)
