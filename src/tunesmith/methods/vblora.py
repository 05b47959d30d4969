"""VB-LoRA: low-rank matrices mixed from one bank of vectors (arXiv:2405.15179)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class VBLoRA(AbstractLayers):
    """Train a bank of vectors that all layers share, and for each of their pieces which of them to mix."""

    peft_config: ClassVar[str] = "VBLoRAConfig"

    rank: Annotated[int, Field(ge=1)] = 4
    """Rank of the adapters."""

    vectors: Annotated[int, Field(ge=1)] = 256
    """How many vectors the bank holds."""

    vector_length: Annotated[int, Field(ge=1)] = 256
    """Length of a vector. It must divide the sides of every adapted matrix."""

    top: Annotated[int, Field(ge=1)] = 2
    """How many vectors are mixed into a piece."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "num_vectors": self.vectors,
            "vector_length": self.vector_length,
            "topk": self.top,
            "vblora_dropout": self.dropout,
        }
