"""GraLoRA: weights cut into a grid of blocks, each with its own LoRA (arXiv:2505.20355)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class GraLoRA(AbstractLayers):
    """Train small adapters for blocks of the weights: more expressive than LoRA of the same size at high ranks."""

    refused_quantizations: ClassVar[dict[str, str]] = {
        "int8": "peft changes the layer's result in place, which bitsandbytes does not allow"
    }

    peft_config: ClassVar[str] = "GraloraConfig"

    rank: Annotated[int, Field(ge=1)] = 32
    """Rank over all blocks; ``blocks`` must divide it."""

    alpha: Annotated[float, Field(gt=0)] = 64.0
    """Scale of the update; the factor in front of it is ``alpha / rank``."""

    blocks: Annotated[int, Field(ge=1)] = 2
    """Blocks along each side. It must divide the sides of every adapted matrix."""

    whole_rank: Annotated[int, Field(ge=0)] = 0
    """Part of the capacity that goes to an ordinary LoRA beside the blocks."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "alpha": self.alpha,
            "gralora_k": self.blocks,
            "hybrid_r": self.whole_rank,
            "gralora_dropout": self.dropout,
        }
