"""TinyLoRA: a handful of weights a layer, between its singular directions (arXiv:2602.04118)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class TinyLoRA(AbstractLayers):
    """Train a tiny vector a layer: enough for reinforcement learning, little for new knowledge."""

    peft_config: ClassVar[str] = "TinyLoraConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 2
    """Singular directions that are used."""

    length: Annotated[int, Field(ge=1)] = 64
    """Length of the vector that trains."""

    tying: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of modules that use one vector: 0 for one each, 1 for one in all."""

    seed: Annotated[int, Field(ge=0)] = 42
    """What the fixed random part is drawn from; it must stay the same for the adapter to fit."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "u": self.length,
            "weight_tying": self.tying,
            "projection_seed": self.seed,
            "tinylora_dropout": self.dropout,
        }
