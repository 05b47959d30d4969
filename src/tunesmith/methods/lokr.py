"""LoKr: an update that is a Kronecker product with a low-rank factor (arXiv:2212.10650)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class LoKr(AbstractLayers):
    """Train the factors of a Kronecker product: the fewest weights for a full-rank update."""

    peft_config: ClassVar[str] = "LoKrConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the larger factor."""

    alpha: Annotated[float, Field(gt=0)] = 8.0
    """Scale of the update; the factor in front of it is ``alpha / rank``."""

    factor: int = -1
    """Side of the smaller factor; -1 for the most even split."""

    decompose_both: bool = False
    """Whether the smaller factor is of low rank, too."""

    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of ranks set to zero while training."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapted modules that are skipped in a training pass."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "alpha": self.alpha,
            "decompose_factor": self.factor,
            "decompose_both": self.decompose_both,
            "rank_dropout": self.rank_dropout,
            "module_dropout": self.dropout,
        }
