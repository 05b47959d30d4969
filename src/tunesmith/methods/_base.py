"""The contract of a training method."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tunesmith.core.registry import Spec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel


class Method(Spec):
    """Decides which weights train.  ``apply`` marks them; every other weight is frozen."""

    learning_rate: ClassVar[float] = 2e-5
    """Peak rate where the recipe gives none."""

    adds_adapter: ClassVar[bool] = False
    """Whether the result is an adapter beside the base model (saved alone, merged on export) or a whole model."""

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Return *model* ready for training: adapters added, ``requires_grad`` set on exactly what trains."""
        raise NotImplementedError

    def base_model(self, model: nn.Module) -> PreTrainedModel:
        """Return the transformers model inside what ``apply`` returned."""
        raise NotImplementedError

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what was trained to *folder*, as safetensors that transformers and peft load."""
        raise NotImplementedError
