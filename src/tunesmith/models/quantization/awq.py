"""AWQ (arXiv:2306.00978): 4 bits, with the channels that matter to the activations scaled up before rounding."""

from __future__ import annotations

from typing import ClassVar

from tunesmith.models.quantization._published import AbstractPublished


class AWQ(AbstractPublished):
    """Read models that were quantized with AWQ; adapters train on them."""

    packages: ClassVar[tuple[str, ...]] = ("gptqmodel",)
    # 4 bits; a scale of 16 bits and a zero point of 4 for each 128 weights
    usual_bytes: ClassVar[float] = 0.5 + 2.5 / 128
