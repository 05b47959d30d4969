"""C3A: block-circular convolution as the update (arXiv:2407.19342)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class C3A(AbstractLayers):
    """Train circulant blocks, multiplied by the fast Fourier transform: high rank for few weights."""

    refused_quantizations: ClassVar[dict[str, str]] = {
        "int8": "peft changes the layer's result in place, which bitsandbytes does not allow"
    }

    peft_config: ClassVar[str] = "C3AConfig"

    block_size: Annotated[int, Field(ge=1)] = 256
    """Side of the circulant blocks; a smaller one trains more. It must divide the sides of every adapted matrix."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "block_size": self.block_size,
        }
