"""HiRA: a low-rank update multiplied with the weights, so that its rank is high (ICLR 2025, TwJrTz9cRS)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class HiRA(AbstractLayers):
    """Train low-rank factors of what each weight is multiplied with."""

    peft_config: ClassVar[str] = "HiraConfig"

    rank: Annotated[int, Field(ge=1)] = 32
    """Rank of the factors."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "hira_dropout": self.dropout,
        }
