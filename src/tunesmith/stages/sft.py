"""Supervised fine-tuning: learn the assistant's turns, given everything before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.stages._base import Example
from tunesmith.stages._likelihood import AbstractLikelihood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.templates.chat import ChatTemplate


class SFT(AbstractLikelihood):
    """Imitate the answers in the data."""

    train_on_prompt: bool = False
    """Learn the system's and user's words too; sometimes helps when answers are very short."""

    def examples(
        self,
        conversations: Sequence[Conversation],
        template: ChatTemplate,
        limit: int,  # noqa: ARG002 - the engine cuts what is too long
    ) -> list[list[Example]]:
        """Return one example a conversation: one sequence, or several where the template rewrites history."""
        sequences = template.sequences(conversations, train_on_prompt=self.train_on_prompt)
        return [[Example(tuple(s), c.origin)] for s, c in zip(sequences, conversations, strict=True)]
