"""APOLLO: full training, each channel's rate estimated in a few random directions (arXiv:2412.05270)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.optimizers._low_rank import AbstractLowRank


class Apollo(AbstractLowRank):
    """AdamW's quality with SGD's memory; random directions cost nothing to find."""

    scaling: ClassVar[Literal["project", "channel", "tensor"]] = "channel"

    rank: Annotated[int, Field(ge=1)] = 256
    """Random directions in which the rates are estimated; a quarter of the hidden size is the paper's choice."""
