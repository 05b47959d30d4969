"""RandLoRA: a full-rank update summed from scaled random low-rank ones (arXiv:2502.00987)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class RandLoRA(AbstractLayers):
    """Train the scales of many fixed random matrices whose sum has full rank."""

    peft_config: ClassVar[str] = "RandLoraConfig"

    rank: Annotated[int, Field(ge=1)] = 32
    """Rank of each random matrix; a LOWER one trains more weights."""

    alpha: Annotated[float, Field(gt=0)] = 640.0
    """Scale of the update; about 20 times the rank."""

    sparse: bool = False
    """Whether the random matrices hold only -1, 0 and 1."""

    seed: Annotated[int, Field(ge=0)] = 0
    """What the fixed random part is drawn from; it must stay the same for the adapter to fit."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "randlora_alpha": self.alpha,
            "sparse": self.sparse,
            "projection_prng_key": self.seed,
            "randlora_dropout": self.dropout,
        }
