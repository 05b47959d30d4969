"""HQQ (half-quadratic quantization, mobiusml.github.io/hqq_blog): few bits in minutes, without sample texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.models.quantization._base import Quantization

if TYPE_CHECKING:
    import torch


class HQQ(Quantization):
    """Keep weights in 1 to 8 bits with hqq."""

    packages: ClassVar[tuple[str, ...]] = ("hqq",)

    bits: Literal[1, 2, 3, 4, 8] = 4
    """Bits a weight."""

    group_size: Annotated[int, Field(ge=8)] = 64
    """Weights that share a scale and a zero point; fewer are closer to the original."""

    def configure(self, dtype: torch.dtype) -> Any:  # noqa: ARG002 - it computes in the type of its inputs
        from transformers import HqqConfig

        return HqqConfig(nbits=self.bits, group_size=self.group_size)

    def bytes_per_weight(self, rows: int, columns: int) -> float:  # noqa: ARG002
        return self.bits / 8 + 4 / self.group_size  # scale and zero point of 16 bits
