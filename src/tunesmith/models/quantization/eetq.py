"""EETQ (github.com/NetEase-FuXi/EETQ): eight bits a weight, with fast kernels for inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.models.quantization._base import Quantization

if TYPE_CHECKING:
    import torch


class EETQ(Quantization):
    """Keep weights in 8 bits with the kernels of EETQ."""

    packages: ClassVar[tuple[str, ...]] = ("kernels",)

    def configure(self, dtype: torch.dtype) -> Any:  # noqa: ARG002 - it computes in float16
        from transformers import EetqConfig

        return EetqConfig("int8")

    def bytes_per_weight(self, rows: int, columns: int) -> float:  # noqa: ARG002
        return 1 + 2 / columns  # a scale of 16 bits a row
