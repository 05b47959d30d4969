"""Which weights train: one file per method.  See :class:`Method`."""

from tunesmith.core.registry import Registry
from tunesmith.methods._base import Method, Start

METHODS = Registry("method", "tunesmith.methods", Method, default="lora")

__all__ = ["METHODS", "Method", "Start"]
