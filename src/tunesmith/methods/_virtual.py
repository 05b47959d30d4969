"""What methods share that train virtual tokens in front of every text; the model's weights are not touched.

In a pack they are the root of the forest: computed once, and seen by all (:mod:`tunesmith.engine.virtual_tokens`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._peft import AbstractPeft

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class AbstractVirtualTokens(AbstractPeft):
    """Train what stands in front of every text."""

    learning_rate: ClassVar[float] = 3e-3
    keeps_base: ClassVar[bool] = False
    cannot_merge: ClassVar[str] = "virtual tokens stand in front of the text, and are no weights"

    tokens: Annotated[int, Field(ge=1)] = 20
    """How many virtual tokens."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {"num_virtual_tokens": self.tokens}

    def choose(self, model: PreTrainedModel) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: peft reads the sizes off the model."""
        return {}

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Freeze the model and add the virtual tokens, on its device."""
        model.requires_grad_(False)
        return super().apply(model)
