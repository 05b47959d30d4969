"""BOFT: an orthogonal matrix as a product of sparse butterfly ones (arXiv:2311.06243)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class BOFT(AbstractLayers):
    """Train block rotations of the weights, with one butterfly factor; slower and hungrier for memory than oft."""

    peft_config: ClassVar[str] = "BOFTConfig"

    block_size: Annotated[int, Field(ge=1)] = 4
    """Side of the blocks; even, and a divisor of the inputs of every adapted matrix."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "boft_block_size": self.block_size,
            # more factors need a CUDA kernel that peft compiles; without it it would use 1 and not say so
            "boft_n_butterfly_factor": 1,
            "boft_dropout": self.dropout,
        }
