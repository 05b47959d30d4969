"""Full fine-tuning: every weight trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.methods._whole import AbstractWholeModel

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Full(AbstractWholeModel):
    """Train every weight: the most capacity and the most memory (about 16 bytes a parameter with AdamW)."""

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Let every weight train."""
        return model.requires_grad_(True)
