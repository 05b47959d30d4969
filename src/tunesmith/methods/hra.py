"""HRA: weights are turned by a chain of Householder reflections (arXiv:2405.17484)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers


class HRA(AbstractLayers):
    """Train a chain of reflections of the inputs: orthogonal like OFT, of low rank like LoRA."""

    peft_config: ClassVar[str] = "HRAConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 8
    """How many reflections; even, so that they begin as nothing."""

    orthogonalise: bool = False
    """Whether the reflections are kept orthogonal to each other."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "apply_GS": self.orthogonalise,
        }
