"""What methods share that train the model's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from tunesmith.methods._base import Method

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel


class AbstractWholeModel(Method):
    """Train weights of the model itself; the result is a whole model."""

    def base_model(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", model)

    def save(self, model: nn.Module, folder: Path) -> None:
        cast("PreTrainedModel", model).save_pretrained(folder)
