"""What Lion and its variant of 8 bits share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.optimizers._base import Optimizer


class AbstractLion(Optimizer):
    """Steps by the sign of a mix of gradient and momentum."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the momentum in the step's direction."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Memory of the momentum."""

    def usual_rate(self, method_rate: float) -> float:
        """Return a fifth: every weight moves by the whole rate, and the paper advises 3 to 10 times less than AdamW."""
        return method_rate / 5
