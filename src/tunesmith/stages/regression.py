"""Regression: one number for each text or dialogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import DataError
from tunesmith.models.heads import Head
from tunesmith.stages._base import Example, Loss
from tunesmith.stages._heads import AbstractHead, in_order, joined, truth_of, whole_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.pack import Pack
    from tunesmith.templates.chat import ChatTemplate


class Regression(AbstractHead):
    """Learn each row's ``label``, a number, by squared error; transformers loads it for sequence classification."""

    @property
    def head(self) -> Head:
        """One number."""
        return Head("sequence", 1, problem="regression")

    def examples(
        self,
        conversations: Sequence[Conversation],
        template: ChatTemplate,
        limit: int,  # noqa: ARG002 - the engine leaves out what is too long
    ) -> list[list[Example]]:
        """Return an example for each row: its text, and its number."""
        wrong = [c for c in conversations if not isinstance(c.rating, float | int)]
        if wrong:
            found = "has no label" if wrong[0].rating is None else f"has the label {wrong[0].rating!r}"
            raise DataError(
                f"{wrong[0].origin}: {found} ({len(wrong)} of {len(conversations)} rows); regression needs text, and a "
                "number as label"
            )
        texts = whole_texts(conversations, template)
        return [
            [Example((text,), c.origin, (float(c.rating or 0),))] for text, c in zip(texts, conversations, strict=True)
        ]

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the summed squared error of the texts in *pack*; what comes in is ``[m, 1]``."""
        outputs = in_order(log_probabilities, pack).squeeze(1)
        return Loss(((outputs - outputs.new_tensor(truth_of(pack.examples))) ** 2).sum(), {})

    def measure(self, outputs: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """Return the share of the labels' variance that is explained; 0 for none."""
        truth, said = np.array(truth_of(examples)), joined(outputs)[:, 0]
        spread = float(truth.var())
        return {"variance_explained": max(0.0, 1 - float(((truth - said) ** 2).mean()) / spread) if spread else 0.0}
