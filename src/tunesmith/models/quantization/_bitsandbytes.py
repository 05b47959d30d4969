"""What the quantizations of bitsandbytes share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunesmith.models.quantization._base import Quantization

if TYPE_CHECKING:
    import torch

_BLOCK, _BLOCKS_A_GROUP = 64, 256
# float32 tables that each layer has of its own: the 16 values of the code; of a double one the 256 values of the
# scales' code, and their mean
_CODE, _DOUBLE_CODE = 4 * 16, 4 * 257


class AbstractFourBits(Quantization):
    """Weights of four bits, and a scale for each block of 64."""

    packages: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    double: bool = False
    """Quantize the scales, too: 0.37 bits a weight less, hardly any loss."""

    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that weights are unpacked to for each product; ``auto`` is that of the rest of the model."""

    def configure(self, dtype: torch.dtype) -> Any:
        import torch
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.type_name(),
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=dtype if self.compute == "auto" else getattr(torch, self.compute),
        )

    def bytes_per_weight(self, rows: int, columns: int) -> float:
        count = rows * columns
        blocks = math.ceil(count / _BLOCK)
        scales = blocks + 4 * math.ceil(blocks / _BLOCKS_A_GROUP) + _DOUBLE_CODE if self.double else 4 * blocks
        return (math.ceil(count / 2) + scales + _CODE) / count
