"""Attention with a mask over all pairs of a pack, through the model's own attention: slow, and right for all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.engine.attention._base import AbstractAttention, Span, sees


class DenseAttention(AbstractAttention):
    """The reference: a boolean mask ``[1, 1, N, N]``, or an additive one where the model's own attention is eager."""

    name = "dense"

    def refusal(self) -> str | None:
        return None

    def mask(self, depth_N: Tensor, reach_N: Tensor, span: Span) -> Tensor:
        return as_own(sees(depth_N, reach_N, span.oldest(depth_N)), self.own, self.base.dtype)


def as_own(sees_NN: Tensor, own: str, dtype: torch.dtype) -> Tensor:
    """Return the mask ``[1, 1, N, N]`` as the attention *own* of transformers takes it."""
    if own != "eager":
        return sees_NN[None, None]
    return torch.zeros_like(sees_NN, dtype=dtype).masked_fill_(~sees_NN, torch.finfo(dtype).min)[None, None]
