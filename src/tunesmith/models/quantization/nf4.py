"""NF4 of QLoRA (arXiv:2305.14314): four bits whose values suit weights that are distributed normally."""

from __future__ import annotations

from tunesmith.models.quantization._bitsandbytes import AbstractFourBits


class NF4(AbstractFourBits):
    """Keep weights as 4-bit NormalFloat with bitsandbytes: a quarter of the memory of bfloat16, the usual choice."""
