"""APOLLO-Mini: one rate a matrix, estimated in one random direction (arXiv:2412.05270)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.optimizers._low_rank import AbstractLowRank


class ApolloMini(AbstractLowRank):
    """APOLLO with hardly any state."""

    scaling: ClassVar[Literal["project", "channel", "tensor"]] = "tensor"

    rank: Annotated[int, Field(ge=1)] = 1
    """Random directions in which the rate is estimated."""

    scale: Annotated[float, Field(gt=0)] = 128.0
    """Strength of a step, which one direction makes too small; its square root counts."""
