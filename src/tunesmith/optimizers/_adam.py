"""The settings that all of Adam's relatives share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.optimizers._base import Optimizer


class AbstractAdam(Optimizer):
    """Divides a running mean of the gradient by the root of a running mean of its square."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the gradient's mean."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Memory of the gradient's square; 0.95 for pretraining."""

    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Keeps the division finite."""
