"""How a gradient becomes a step: one file per optimizer.  See :class:`Optimizer`."""

from tunesmith.core.registry import Registry
from tunesmith.optimizers._base import Optimizer

OPTIMIZERS = Registry("optimizer", "tunesmith.optimizers", Optimizer, default="adamw")

__all__ = ["OPTIMIZERS", "Optimizer"]
