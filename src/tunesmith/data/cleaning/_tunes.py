"""Tunes as collections write them: 扫花游・扫地游 are two names of one, 浣溪沙（春恨） has a title beside it."""

import re

from tunesmith.prosody.ci import tunes

_PARTS = re.compile(r"[·・/（(）) 　]+")


def known_tune(name: str) -> str | None:
    """Return the first part of *name* that is a tune; ``None`` where none is known."""
    return next((part for part in _PARTS.split(name) if part in tunes()), None)
