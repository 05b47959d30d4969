"""VeRA: fixed random matrices that all layers share, scaled by trained vectors (arXiv:2310.11454)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class VeRA(AbstractLayers):
    """Train two vectors a layer beside shared random matrices; wants a ten times higher rate than LoRA."""

    peft_config: ClassVar[str] = "VeraConfig"
    learning_rate: ClassVar[float] = 4e-3

    rank: Annotated[int, Field(ge=1)] = 256
    """Rank of the random matrices; they do not train, so it may be high."""

    initial: Annotated[float, Field(gt=0)] = 0.1
    """What the inner vector begins with."""

    seed: Annotated[int, Field(ge=0)] = 0
    """What the fixed random part is drawn from; it must stay the same for the adapter to fit."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "d_initial": self.initial,
            "projection_prng_key": self.seed,
            "vera_dropout": self.dropout,
        }
