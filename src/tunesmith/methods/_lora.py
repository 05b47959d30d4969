"""What the LoRA family shares: adapters of low rank beside frozen weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.errors import UserError
from tunesmith.methods._peft import AbstractPeft

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class AbstractLoRA(AbstractPeft):
    """Train adapters of low rank; the base weights stay frozen."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapters: capacity and memory grow with it. 8 for a style, 64 for new knowledge."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the update; the factor in front of it is ``alpha / rank``."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training; 0.05 helps on small data."""

    targets: str | list[str] = "all-linear"
    """``all-linear`` (every linear layer but the output head), names of modules, or one regular expression."""

    modules_to_save: list[str] = []
    """Modules trained whole and saved beside the adapter, such as ``embed_tokens`` for new tokens."""

    def lora_options(self) -> dict[str, Any]:
        """Return what a variant changes in peft's LoraConfig."""
        return {}

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Add the adapters; raise :class:`UserError` for targets that fit no module, or more rank than a matrix has."""
        from torch import nn

        sides = [min(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
        if sides and self.rank > max(sides):
            raise UserError(f"method.rank: {self.rank} is more than any matrix of this model has ({max(sides)})")
        return super().apply(model)

    def peft_config(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft annotates int and computes with any number
            lora_dropout=self.dropout,
            target_modules=self.targets,
            modules_to_save=self.modules_to_save or None,
            **self.lora_options(),
        )
