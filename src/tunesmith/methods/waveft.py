"""WaveFT: an update given by some of its wavelet coefficients (arXiv:2505.12532)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class WaveFT(AbstractLayers):
    """Train a few coefficients of each update's wavelet transform."""

    peft_config: ClassVar[str] = "WaveFTConfig"

    frequencies: Annotated[int, Field(ge=1)] = 2592
    """Coefficients that train in each layer; at most as many as its matrix has entries."""

    scale: Annotated[float, Field(gt=0)] = 25.0
    """Factor in front of the update."""

    wavelet: str = "db1"
    """Family of wavelets, by its PyWavelets name."""

    seed: Annotated[int, Field(ge=0)] = 777
    """What the fixed random part is drawn from; it must stay the same for the adapter to fit."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "n_frequency": self.frequencies,
            "scaling": self.scale,
            "wavelet_family": self.wavelet,
            "random_loc_seed": self.seed,
        }
