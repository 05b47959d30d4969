"""How frozen weights are kept in fewer bits: one file per kind.  See :class:`Quantization`."""

from __future__ import annotations

from tunesmith.core.registry import Registry
from tunesmith.models.quantization._base import Quantization

QUANTIZATIONS = Registry("quantization", "tunesmith.models.quantization", Quantization)


def bytes_per_weight(quantization: Quantization | None, rows: int, columns: int, plain: float = 2.0) -> float:
    """Return the bytes that each weight of a linear layer ``[rows, columns]`` takes, what belongs to it included.

    *plain* is that of weights that are not quantized: also embeddings, norms, biases and the output head, which no kind
    quantizes.  NF4: half a byte, and a float32 for each 64 weights; with ``double`` one byte for each 64 weights, and a
    float32 for each 256 of those.  int8: one byte, and a float32 a row.  What is only read from checkpoints is taken to
    be as their publishers usually make it.  Needs no torch.
    """
    return plain if quantization is None else quantization.bytes_per_weight(rows, columns)


__all__ = ["QUANTIZATIONS", "Quantization", "bytes_per_weight"]
