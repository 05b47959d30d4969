"""LLM.int8() of bitsandbytes (arXiv:2208.07339): eight bits, with columns of large inputs in sixteen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.models.quantization._base import Quantization

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


class Int8(Quantization):
    """Keep weights in 8 bits with bitsandbytes: half the memory of bfloat16, hardly any loss."""

    packages: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    threshold: Annotated[float, Field(ge=0)] = 6.0
    """Inputs larger than this keep their column in 16 bits; 0 keeps none."""

    def configure(self, dtype: torch.dtype) -> Any:  # noqa: ARG002 - it computes in the type of its inputs
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.threshold)

    def bytes_per_weight(self, rows: int, columns: int) -> float:  # noqa: ARG002 - each row has one scale
        return 1 + 4 / columns

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse also DoRA, for which peft would need the scales before bitsandbytes has them in place."""
        yield from super().check(recipe)
        if recipe.method.type_name() == "dora":
            problem = "dora needs the norms of the weights, which peft cannot take of int8 ones"
            yield Problem("method", problem, hint="use model.quantization: nf4, or method: lora")
