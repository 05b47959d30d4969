"""GaLore: full training with Adam's state in the gradient's leading directions (arXiv:2403.03507)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.optimizers._low_rank import AbstractLowRank


class GaLore(AbstractLowRank):
    """Every weight trains, with little more state than LoRA's; finding the directions takes a while each time.

    With ``bits: 8`` it is 8-bit GaLore, with ``engine.optimizer_in_backward: true`` the layerwise variant.
    """

    scaling: ClassVar[Literal["project", "channel", "tensor"]] = "project"

    scale: Annotated[float, Field(gt=0)] = 0.25
    """Strength of a projected step, beside the rate (the paper's alpha)."""
