"""RoAd: pairs of outputs are rotated and scaled (arXiv:2409.00119)."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.methods._layers import AbstractLayers


class RoAd(AbstractLayers):
    """Train rotations of pairs of outputs: very few weights, and adapters that batch well."""

    peft_config: ClassVar[str] = "RoadConfig"

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    """How many numbers a pair gets: 1, 2 or 4 times as many weights."""

    group_size: Annotated[int, Field(ge=1)] = 64
    """Outputs of a group, whose halves are paired; even, and a divisor of every output side."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "variant": self.variant,
            "group_size": self.group_size,
        }
