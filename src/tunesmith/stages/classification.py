"""Classification: one of several classes for each text or dialogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from tunesmith.core.errors import DataError
from tunesmith.core.registry import suggest
from tunesmith.models.heads import Head
from tunesmith.stages._base import Example, Loss
from tunesmith.stages._heads import AbstractHead, in_order, joined, truth_of, whole_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.pack import Pack
    from tunesmith.templates.chat import ChatTemplate


class Classification(AbstractHead):
    """Learn the class of each row by cross-entropy; transformers loads the result for sequence classification."""

    labels: Annotated[list[str], Field(min_length=2)]
    """Names of the classes, as the data's ``label`` column has them, in the order of the outputs."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label spread evenly over the classes, so that the model stays less sure."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels: one stands there twice")
        return self

    @property
    def head(self) -> Head:
        """A number for each class."""
        return Head("sequence", len(self.labels), tuple(self.labels), "single_label_classification")

    def examples(
        self,
        conversations: Sequence[Conversation],
        template: ChatTemplate,
        limit: int,  # noqa: ARG002 - the engine leaves out what is too long
    ) -> list[list[Example]]:
        """Return an example for each row: its text, and the number of its class."""
        names = [_name_of(c.rating) for c in conversations]
        wrong = [(c, name) for c, name in zip(conversations, names, strict=True) if name not in self.labels]
        if wrong:
            (first, name), count = wrong[0], f"{len(wrong)} of {len(conversations)} rows"
            if name is None:
                raise DataError(f"{first.origin}: has no label ({count}); classification needs text and label")
            near = suggest(name, self.labels)
            raise DataError(f"{first.origin}: label {name!r} is none of stage.labels{near} ({count}); add it there")
        texts = whole_texts(conversations, template)
        numbers = [self.labels.index(name) for name in names if name is not None]
        return [
            [Example((text,), c.origin, (number,))]
            for text, number, c in zip(texts, numbers, conversations, strict=True)
        ]

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the summed cross-entropy of the texts in *pack*; what comes in is ``[m, classes]``."""
        from torch.nn.functional import cross_entropy

        outputs = in_order(log_probabilities, pack)
        truth = pack.target.new_tensor(truth_of(pack.examples))
        right = (outputs.detach().argmax(1) == truth).float().sum()
        total = cross_entropy(outputs, truth, reduction="sum", label_smoothing=self.label_smoothing)
        return Loss(total, {"accuracy": right})

    def measure(self, outputs: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """Return accuracy, and F1 as a mean over the classes that the data or the model name."""
        truth, said = np.array(truth_of(examples)), joined(outputs).argmax(1)
        scores = []
        for number in sorted({*truth.tolist(), *said.tolist()}):
            both = float(((truth == number) & (said == number)).sum())
            scores.append(2 * both / float((truth == number).sum() + (said == number).sum()))
        return {"accuracy": float((truth == said).mean()), "macro_f1": float(np.mean(scores))}


def _name_of(rating: str | float | None) -> str | None:
    """Return a label as ``stage.labels`` writes it: a whole number is its digits."""
    if isinstance(rating, float | int):
        return str(int(rating)) if float(rating).is_integer() else str(rating)
    return rating
