"""MiSS: one matrix, shared and repeated over the pieces of a weight (arXiv:2409.15371; once called Bone)."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class MiSS(AbstractLayers):
    """Train a single small matrix a layer that is repeated along the inputs: less memory than LoRA."""

    peft_config: ClassVar[str] = "MissConfig"

    rank: Annotated[int, Field(ge=1)] = 64
    """Size of the shared piece; it should divide the inputs."""

    variant: Literal["balance", "bat", "mini"] = "balance"
    """``balance``; ``bat`` for the update that also looks at the weights (Bone's Bat); ``mini`` for fewer weights."""

    mini_rank: Annotated[int, Field(ge=1)] = 1
    """With ``mini``: size along the outputs; it must divide them."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "init_weights": True if self.variant == "balance" else self.variant,
            "mini_r": self.mini_rank,
            "miss_dropout": self.dropout,
        }
