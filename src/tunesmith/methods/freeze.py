"""Freeze: only some of the model's own layers train."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.core.errors import Problem, UserError
from tunesmith.methods._whole import AbstractWholeModel, transformer_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from transformers import PreTrainedModel


class Freeze(AbstractWholeModel):
    """Train the last or first blocks, or weights named by pattern; everything else keeps its value."""

    learning_rate: ClassVar[float] = 5e-5

    last: Annotated[int, Field(ge=0)] = 2
    """Transformer blocks that train, counted from the end; 0 for none."""

    first: Annotated[int, Field(ge=0)] = 0
    """Transformer blocks that train, counted from the start."""

    also: list[str] = []
    """Regular expressions; weights whose full name contains a match train too, such as ``norm`` or ``embed_tokens``."""

    def check(self, recipe: Any) -> Iterable[Problem]:  # noqa: ARG002
        """Refuse a choice that trains nothing, and patterns that are none."""
        if not (self.last or self.first or self.also):
            yield Problem("method.last", "nothing would train", hint="set last, first or also")
        for index, pattern in enumerate(self.also):
            try:
                re.compile(pattern)
            except re.error as error:
                yield Problem(f"method.also.{index}", f"{pattern!r} is not a regular expression: {error}")

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Freeze all but the chosen weights; raise :class:`UserError` where a pattern matches none."""
        model.requires_grad_(False)
        blocks = transformer_blocks(model)
        if self.last + self.first > len(blocks):
            raise UserError(f"method: first + last = {self.first + self.last}, but the model has {len(blocks)} blocks")
        for block in [*blocks[: self.first], *blocks[len(blocks) - self.last :]]:
            block.requires_grad_(True)
        for pattern in self.also:
            matching = [p for name, p in model.named_parameters() if re.search(pattern, name)]
            if not matching:
                raise UserError(f"method.also: no weight's name contains a match of {pattern!r}")
            for parameter in matching:
                parameter.requires_grad_(True)
        return model
