"""DeLoRA: low-rank updates of bounded size, direction and strength apart (arXiv:2503.18225)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class DeLoRA(AbstractLayers):
    """Train low-rank directions and one strength a layer: robust against high rates."""

    peft_config: ClassVar[str] = "DeloraConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapters."""

    strength: Annotated[float, Field(gt=0)] = 15.0
    """What the bound on the update's size begins with."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "delora_lambda": self.strength,
            "module_dropout": self.dropout,
        }
