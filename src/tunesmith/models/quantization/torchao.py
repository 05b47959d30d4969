"""torchao (github.com/pytorch/ao): PyTorch's own quantized tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunesmith.core.errors import Problem
from tunesmith.models.quantization._base import Quantization

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

_KINDS = {"int8": "Int8WeightOnlyConfig", "int4": "Int4WeightOnlyConfig", "float8": "Float8WeightOnlyConfig"}


class TorchAO(Quantization):
    """Keep weights as quantized tensors of torchao, which other programs of the PyTorch family read."""

    packages: ClassVar[tuple[str, ...]] = ("torchao",)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    weights: Literal["int8", "int4", "float8"] = "int8"
    """What weights are kept as; adapters train on int8 only."""

    def configure(self, dtype: torch.dtype) -> Any:  # noqa: ARG002 - it computes in the type of its inputs
        from torchao import quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(quantization, _KINDS[self.weights])())

    def bytes_per_weight(self, rows: int, columns: int) -> float:  # noqa: ARG002
        # scales have the type of the model, float32 at most: one a row, or one and a zero point for each 128 weights
        return 0.5 + 4 / 128 if self.weights == "int4" else 1 + 4 / columns

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse also to train on all but int8, as transformers does."""
        yield from super().check(recipe)
        if self.weights != "int8":
            problem = f"adapters do not train on torchao's {self.weights}"
            yield Problem("model.quantization.weights", problem, hint="use int8, or quantization: nf4")

    def check_machine(self, device: str) -> Iterable[Problem]:
        """Refuse also four bits without CUDA: their kernels are there only."""
        yield from super().check_machine(device)
        if self.weights == "int4" and device != "cuda":
            problem = f"torchao's int4 computes on cuda only, and this machine has {device}"
            yield Problem("model.quantization.weights", problem, hint="use int8, or quantization: nf4")
