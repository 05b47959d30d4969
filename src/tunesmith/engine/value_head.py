"""A head that says what a sequence will earn from here on, read off the hidden states under the output head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.engine.model import PackModel

_NAME = "value_head"


class ValueHead(nn.Module):
    """One number for each hidden state, in float32; 0 before it has learnt."""

    def __init__(self, size: int) -> None:
        """Take hidden states of *size* numbers."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_MD: Tensor) -> Tensor:
        """Return ``[M]``."""
        with torch.autocast(hidden_MD.device.type, enabled=False):
            return hidden_MD.float() @ self.weight + self.bias


def add_value_head(packed: PackModel) -> None:
    """Let *packed* give values beside log-probabilities; the head trains and is checkpointed with the model.

    Raises :class:`UserError` where the hidden states are not to be had.
    """
    head: Any = packed.base.get_output_embeddings()
    if not packed.separate_head or not isinstance(head, nn.Linear):
        kind = packed.base.config.model_type
        raise UserError(f"stage: {kind} does not show the hidden states that a value head reads; use stage: grpo")
    value_head = ValueHead(head.in_features).to(packed.base.device)
    packed.model.add_module(_NAME, value_head)
    packed.value_head = (value_head,)


def save_value_head(model: nn.Module, folder: Path) -> None:
    """Write the head of *model* to a folder in *folder* and take it off, so that the rest is saved as any model is."""
    head = model.get_submodule(_NAME)
    place = folder / _NAME
    place.mkdir()
    tensors = {name: tensor.detach().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, place / "weights.safetensors")
    delattr(model, _NAME)
