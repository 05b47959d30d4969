"""PSOFT: a rotation within the principal directions of the weights (ICLR 2026, FSHrinMArK)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class PSOFT(AbstractLayers):
    """Train one small orthogonal matrix and two vectors a layer, between fixed singular directions of the weights."""

    peft_config: ClassVar[str] = "PsoftConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 32
    """Side of the rotation; at most the smaller side of each matrix."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the update; the factor in front of it is ``alpha / rank``."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "psoft_alpha": self.alpha,
            "psoft_dropout": self.dropout,
        }
