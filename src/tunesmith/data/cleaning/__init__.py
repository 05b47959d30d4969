"""Cleaning of verse corpora: one file a step, each a small function over poems.  See :class:`Cleaner`."""

from tunesmith.core.registry import Registry
from tunesmith.data.cleaning._base import Cleaner, Log

CLEANERS = Registry("cleaner", "tunesmith.data.cleaning", Cleaner)

USUAL = ("names", "notes", "lost", "variants", "punctuation", "duplicates", "form")
"""The steps that are taken where none is named, in their order; ``script`` is taken where it is asked for."""

__all__ = ["CLEANERS", "USUAL", "Cleaner", "Log"]
