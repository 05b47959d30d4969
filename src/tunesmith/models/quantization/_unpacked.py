"""What quantizations share whose models can be turned into plain ones while they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.models.quantization._base import Quantization

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from tunesmith.core.errors import Problem


class AbstractUnpacked(Quantization):
    """Weights of a published model, as they are or unpacked."""

    cannot_train: ClassVar[str] = "its kernels have no backward pass"

    transformers_config: ClassVar[str]
    """Name of transformers' class of configurations."""

    unpack: bool = False
    """Turn a quantized model's weights into plain ones while loading: they train like any others, and take as much."""

    @property
    def loses_bits(self) -> bool:
        return not self.unpack

    def configure(self, dtype: torch.dtype) -> Any:  # noqa: ARG002 - it computes in bfloat16
        import transformers

        return getattr(transformers, self.transformers_config)(dequantize=self.unpack)

    def check_installed(self) -> Iterable[Problem]:
        return () if self.unpack else super().check_installed()

    def check_machine(self, device: str) -> Iterable[Problem]:
        return () if self.unpack else super().check_machine(device)

    def bytes_per_weight(self, rows: int, columns: int) -> float:
        return 2.0 if self.unpack else super().bytes_per_weight(rows, columns)

    def hint_to_train(self) -> str:
        return f"use {{type: {self.type_name()}, unpack: true}} for a model that is quantized so, else nf4 or int8"
