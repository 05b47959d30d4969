"""Supervised fine-tuning: learn the assistant's turns, given everything before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.stages._base import Example
from tunesmith.stages._likelihood import AbstractLikelihood
from tunesmith.templates.learning import Learning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.templates.chat import ChatTemplate


class SFT(AbstractLikelihood):
    """Imitate the answers in the data."""

    train_on_prompt: bool | Annotated[float, Field(ge=0, allow_inf_nan=False)] = False
    """Learn prompts too, for very short answers; a number is what each of their tokens counts, such as 0.1."""

    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are learnt: each, or the last of a conversation. A turn's ``train`` goes first."""

    roles: Annotated[list[Literal["system", "user", "assistant", "tool"]], Field(min_length=1)] = ["assistant"]
    """Whose words are learnt, such as ``[user, assistant]``; a turn's ``train`` in the data goes first."""

    train_on_reasoning: bool = True
    """Learn the reasoning before an answer; else it is only read."""

    train_on_tool_calls: bool = True
    """Learn tool calls; else they are only read."""

    def examples(
        self,
        conversations: Sequence[Conversation],
        template: ChatTemplate,
        limit: int,  # noqa: ARG002 - the engine cuts what is too long
    ) -> list[list[Example]]:
        """Return one example a conversation: one sequence, or several where the template rewrites history."""
        learning = Learning(
            turns=self.turns,
            roles=tuple(self.roles),
            prompt_weight=float(self.train_on_prompt),
            reasoning=self.train_on_reasoning,
            tool_calls=self.train_on_tool_calls,
        )
        sequences = template.sequences(conversations, learning)
        return [[Example(tuple(s), c.origin)] for s, c in zip(sequences, conversations, strict=True)]
