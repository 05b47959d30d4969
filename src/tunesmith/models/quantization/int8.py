"""LLM.int8() of bitsandbytes (arXiv:2208.07339): eight bits, with columns of large inputs in sixteen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.models.quantization._base import Quantization

if TYPE_CHECKING:
    import torch


class Int8(Quantization):
    """Keep weights in 8 bits with bitsandbytes: half the memory of bfloat16, hardly any loss."""

    packages: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    keeps_inputs: ClassVar[bool] = True

    threshold: Annotated[float, Field(ge=0)] = 6.0
    """Inputs larger than this keep their column in 16 bits; 0 keeps none."""

    def configure(self, dtype: torch.dtype) -> Any:  # noqa: ARG002 - it computes in the type of its inputs
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.threshold)

    def bytes_per_weight(self, rows: int, columns: int) -> float:  # noqa: ARG002 - each row has one scale
        return 1 + 4 / columns
