"""FourierFT: an update given by some of its Fourier coefficients (arXiv:2405.03003)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class FourierFT(AbstractLayers):
    """Train a few coefficients of each update's discrete Fourier transform; wants a high rate."""

    peft_config: ClassVar[str] = "FourierFTConfig"
    learning_rate: ClassVar[float] = 3e-2

    frequencies: Annotated[int, Field(ge=1)] = 1000
    """Coefficients that train in each layer; at most as many as its matrix has entries."""

    scale: Annotated[float, Field(gt=0)] = 150.0
    """Factor in front of the update."""

    seed: Annotated[int, Field(ge=0)] = 777
    """What the fixed random part is drawn from; it must stay the same for the adapter to fit."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "n_frequency": self.frequencies,
            "scaling": self.scale,
            "random_loc_seed": self.seed,
        }
