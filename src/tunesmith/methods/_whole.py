"""What methods share that train the model's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from tunesmith.core.errors import UserError
from tunesmith.methods._base import Method

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel


class AbstractWholeModel(Method):
    """Train weights of the model itself; the result is a whole model."""

    needs_plain_weights: ClassVar[str] = "it trains the weights themselves, and packed bits have no gradient"

    def base_model(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", model)

    def save(self, model: nn.Module, folder: Path) -> None:
        cast("PreTrainedModel", model).save_pretrained(folder)


def transformer_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the model's repeated blocks: its longest list of modules, whatever the architecture calls it."""
    from torch import nn

    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise UserError(f"method: {type(model).__name__} has no list of blocks; use method: full or lora")
    return max(lists, key=len)
