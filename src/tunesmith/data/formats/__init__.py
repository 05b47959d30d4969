"""How a record is read: one file per format.  See :class:`Format`."""

from tunesmith.core.registry import Registry
from tunesmith.data.formats._base import Format

FORMATS = Registry("format", "tunesmith.data.formats", Format)

__all__ = ["FORMATS", "Format"]
