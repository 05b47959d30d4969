"""LN tuning: only the scales and shifts of the normalisation layers train (arXiv:2312.11420)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.methods._layers import AbstractLayers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LNTuning(AbstractLayers):
    """Train the normalisation layers: a few vectors, kept beside the base."""

    peft_config: ClassVar[str] = "LNTuningConfig"
    learning_rate: ClassVar[float] = 1e-3

    all_of_them: ClassVar[str] = "all-norms"

    targets: str | list[str] = "all-norms"
    """``all-norms``, names of normalisation modules, or one regular expression."""

    def options(self) -> dict[str, Any]:
        """Return nothing: there is nothing to set."""
        return {}

    def usual_targets(self, model: PreTrainedModel) -> list[str]:
        """Return every module that is called a norm and has a weight."""
        return [
            name
            for name, module in model.named_modules()
            if "norm" in type(module).__name__.lower() and "weight" in dict(module.named_parameters(recurse=False))
        ]
