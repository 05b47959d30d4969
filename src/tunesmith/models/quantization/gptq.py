"""GPTQ (arXiv:2210.17323): weights rounded so that the outputs on sample texts change least."""

from __future__ import annotations

from typing import ClassVar

from tunesmith.models.quantization._published import AbstractPublished


class GPTQ(AbstractPublished):
    """Read models that were quantized with GPTQ; adapters train on them."""

    packages: ClassVar[tuple[str, ...]] = ("gptqmodel", "optimum")
    # 4 bits; a scale of 16 bits and a zero point of 4 for each 128 weights
    usual_bytes: ClassVar[float] = 0.5 + 2.5 / 128
