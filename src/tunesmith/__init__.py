"""Tunesmith: from a file of examples to a compared, served, exportable language model."""

__version__ = "0.1.0"
