"""IA³: keys, values and the inner activations of the feed-forward layers are scaled (arXiv:2205.05638)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.methods._layers import AbstractLayers, matching_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class IA3(AbstractLayers):
    """Train one vector for each chosen layer: very few weights, for very little data; wants a high rate."""

    peft_config: ClassVar[str] = "IA3Config"
    learning_rate: ClassVar[float] = 3e-3

    targets: str | list[str] = ["k_proj", "v_proj", "down_proj"]
    """Modules whose outputs are scaled (``feedforward`` ones: whose inputs): names, a pattern, or ``all-linear``."""

    feedforward: str | list[str] = ["down_proj"]
    """Those of the targets whose inputs are scaled: the last layer of each feed-forward block; names, or a pattern."""

    def options(self) -> dict[str, Any]:
        """Return nothing: all that IA³ is told is which modules."""
        return {}

    def choose(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the modules to scale, outputs and inputs."""
        chosen = super().choose(model)
        names = [name for name, _ in model.named_modules() if name]
        inputs = set(matching_names("feedforward", self.feedforward, names)) if self.feedforward else set()
        return {**chosen, "feedforward_modules": [name for name in chosen["target_modules"] if name in inputs]}
