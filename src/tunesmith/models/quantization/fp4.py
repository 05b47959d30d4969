"""FP4 of bitsandbytes: four bits as a tiny floating-point number."""

from __future__ import annotations

from tunesmith.models.quantization._bitsandbytes import AbstractFourBits


class FP4(AbstractFourBits):
    """Keep weights as 4-bit floats with bitsandbytes; nf4 is nearly always closer to the original."""
