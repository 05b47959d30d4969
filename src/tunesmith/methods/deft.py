"""DEFT: a low-rank part of the weights is taken out and another put in (peft's DeftConfig)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class DEFT(AbstractLayers):
    """Train which directions of the outputs to replace, and what with."""

    peft_config: ClassVar[str] = "DeftConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 8
    """Directions that are replaced."""

    orthogonal: bool = False
    """Whether the directions are made orthogonal first."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "decomposition_method": "qr" if self.orthogonal else "relu",
            "deft_dropout": self.dropout,
        }
