"""OFT: weights are turned by an orthogonal matrix of blocks (arXiv:2306.07280; fast form arXiv:2506.19847)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class OFT(AbstractLayers):
    """Train rotations of the inputs: angles between neurons stay, which keeps what the model knows."""

    peft_config: ClassVar[str] = "OFTConfig"

    block_size: Annotated[int, Field(ge=1)] = 32
    """Side of the blocks that are rotated; a larger one learns more. peft takes the nearest that divides a side."""

    share_blocks: bool = False
    """Whether all blocks of a layer are one."""

    cayley_terms: Annotated[int, Field(ge=0)] = 5
    """Terms of the series that makes a matrix orthogonal; 0 for an exact inverse, which is slower."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapted modules that are skipped in a training pass."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "oft_block_size": self.block_size,
            "block_share": self.share_blocks,
            "num_cayley_neumann_terms": self.cayley_terms,
            "module_dropout": self.dropout,
            "use_cayley_neumann": self.cayley_terms > 0,
        }
