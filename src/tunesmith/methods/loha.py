"""LoHa: an update that is the elementwise product of two low-rank ones (arXiv:2108.06098)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class LoHa(AbstractLayers):
    """Train two pairs of low-rank factors whose products are multiplied: rank squared for twice the weights."""

    peft_config: ClassVar[str] = "LoHaConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of each of the two products."""

    alpha: Annotated[float, Field(gt=0)] = 8.0
    """Scale of the update; the factor in front of it is ``alpha / rank``."""

    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of ranks set to zero while training."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapted modules that are skipped in a training pass."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "alpha": self.alpha,
            "rank_dropout": self.rank_dropout,
            "module_dropout": self.dropout,
        }
