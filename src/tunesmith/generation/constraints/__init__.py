"""What an answer must look like, held token by token: one file per constraint.  See :class:`Constraint`."""

from tunesmith.core.registry import Registry
from tunesmith.generation.constraints._base import Constraint, Walk

CONSTRAINTS = Registry("constraint", "tunesmith.generation.constraints", Constraint)

__all__ = ["CONSTRAINTS", "Constraint", "Walk"]
