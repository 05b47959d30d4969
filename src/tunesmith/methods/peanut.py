"""PEANuT: an update that a small network makes of the weights (arXiv:2410.01870)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class PEANuT(AbstractLayers):
    """Train a small network a layer that reads its weights and writes their update."""

    peft_config: ClassVar[str] = "PeanutConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 32
    """Width of the network."""

    depth: Annotated[int, Field(ge=0)] = 0
    """Hidden layers on each side."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor in front of the update."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "depth": self.depth,
            "scaling": self.scale,
        }
