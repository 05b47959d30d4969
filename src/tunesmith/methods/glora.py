"""GLoRA: weights and biases, each scaled, shifted and coupled (arXiv:2306.07967)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class GLoRA(AbstractLayers):
    """Train a low-rank scale and shift of the weights, and a shift of the outputs made from the weights."""

    peft_config: ClassVar[str] = "GloraConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the factors."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
        }
