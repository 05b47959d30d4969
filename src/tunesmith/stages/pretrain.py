"""Pretraining: learn plain text, every token of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.errors import DataError
from tunesmith.engine.example import Example
from tunesmith.stages._likelihood import AbstractLikelihood
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.templates.chat import ChatTemplate


class Pretrain(AbstractLikelihood):
    """Continue or begin a model's schooling on plain text; long texts are split, none is cut."""

    def examples(
        self, conversations: Sequence[Conversation], template: ChatTemplate, limit: int
    ) -> list[list[Example]]:
        """Return each text as examples of at most *limit* tokens, the last one closed by the end token."""
        wrong = [c.origin for c in conversations if c.text is None]
        if wrong:
            raise DataError(
                f"{wrong[0]}: pretrain learns plain text, but this row is a dialogue ({len(wrong)} such rows); "
                "use stage: sft, or give a text column"
            )
        out = []
        for tokens, conversation in zip(
            template.encode_texts([c.text or "" for c in conversations]), conversations, strict=True
        ):
            pieces = [tokens[start : start + limit] for start in range(0, len(tokens), limit)]
            out.append(
                [
                    Example((TokenSequence.trained_from(piece, 1),), conversation.origin)
                    for piece in pieces
                    if len(piece) > 1
                ]
            )
        return out
