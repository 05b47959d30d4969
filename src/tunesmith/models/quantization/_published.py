"""What quantizations share that need sample texts and hours: models come quantized, and are only read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.models.quantization._base import Quantization

if TYPE_CHECKING:
    import torch


class AbstractPublished(Quantization):
    """Reads models that others quantized; what is in their files decides all."""

    only_reads: ClassVar[str] = "it needs sample texts and a GPU for hours"

    def configure(self, dtype: torch.dtype) -> Any:  # noqa: ARG002
        """Return nothing: the checkpoint's own configuration counts."""
        return None
