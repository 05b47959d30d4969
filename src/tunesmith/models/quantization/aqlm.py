"""AQLM (arXiv:2401.06118): groups of eight weights as sums of vectors out of learnt tables, about two bits a weight."""

from __future__ import annotations

from typing import ClassVar

from tunesmith.models.quantization._published import AbstractPublished


class AQLM(AbstractPublished):
    """Read models that were quantized with AQLM; adapters train on them."""

    packages: ClassVar[tuple[str, ...]] = ("aqlm",)
    # one table of 2^16 vectors of 8 weights: 16 bits for each 8 weights
    usual_bytes: ClassVar[float] = 0.25
