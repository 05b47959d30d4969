"""What stages share that learn the answers in the data: which of a conversation's words, and how much they count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.core.errors import DataError
from tunesmith.stages._base import Example, Stage
from tunesmith.templates.learning import Learning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.templates.chat import ChatTemplate


class AbstractImitation(Stage):
    """Learn the assistant's turns, given everything before them."""

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
        _look_at_judgements(conversations, template, self.type_name())
        learning = Learning(
            turns=self.turns,
            roles=tuple(self.roles),
            prompt_weight=float(self.train_on_prompt),
            reasoning=self.train_on_reasoning,
            tool_calls=self.train_on_tool_calls,
        )
        sequences = template.sequences(conversations, learning)
        return [[Example(tuple(s), c.origin)] for s, c in zip(sequences, conversations, strict=True)]


def _look_at_judgements(conversations: Sequence[Conversation], template: ChatTemplate, name: str) -> None:
    """Note the pairs, of which the chosen ending is learnt; raise :class:`DataError` for answers that were disliked."""
    template.notes["pairs"] += sum(bool(each.rejected) for each in conversations)
    wrong = [each for each in conversations if each.label is False]
    if wrong:
        raise DataError(
            f"{wrong[0].origin}: {name} would learn an answer whose label says that it was not liked ({len(wrong)} of "
            f"{len(conversations)} rows); use stage: kto, or keep it from being read with columns: {{label: null}}"
        )
