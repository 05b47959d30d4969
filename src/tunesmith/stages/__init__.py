"""What is minimised: one file per training stage.  See :class:`Stage`."""

from tunesmith.core.registry import Registry
from tunesmith.stages._base import Example, Loss, Stage

STAGES = Registry("stage", "tunesmith.stages", Stage, default="sft")

__all__ = ["STAGES", "Example", "Loss", "Stage"]
