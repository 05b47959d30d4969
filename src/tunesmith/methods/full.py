"""Full fine-tuning: every weight trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.methods._whole import AbstractWholeModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


class Full(AbstractWholeModel):
    """Train every weight: the most capacity and the most memory (about 16 bytes a parameter with AdamW)."""

    freeze_embeddings: bool = False
    """Leave the embeddings of tokens as they are, and the output head where it is the same matrix; saves its memory."""

    def notices(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield that the output head stays too, where it is the same matrix."""
        if self.freeze_embeddings and config.get_text_config().tie_word_embeddings:
            yield "method.freeze_embeddings: the output head of this model is the same matrix, and is frozen with it"

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Let every weight train that should."""
        model.requires_grad_(True)
        if self.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        return model
