"""What every attention backend does: a mask that carries a pack's forest through the model, and a kernel that reads it.

Legend: N tokens of a pack, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

# packs are filled up to a multiple of this: every new shape of a matrix product makes the CPU's library build and keep
# a kernel (seen: 2.4 GB after 200 steps), and compilers compile again
LENGTH_STEP = 64


class UnsupportedAttentionError(NotImplementedError):
    """A layer asks for something that a backend does not do; the engine then uses another."""


def unusual_arguments(given: dict[str, Any]) -> list[str]:
    """Return the arguments of a layer that change its scores in ways only its own attention knows."""
    return [n for n in ("softcap", "s_aux", "position_bias", "head_mask") if given.get(n) is not None]


@dataclass(frozen=True)
class Span:
    """How far back a layer's tokens see: 0 is no limit."""

    window: int = 0
    """A token sees so many tokens, itself among them."""
    chunk: int = 0
    """A token sees back to the last depth that is a multiple of this."""

    def oldest(self, depth_N: Tensor) -> Tensor:
        """Return ``[N]``: the smallest depth that each token sees."""
        if self.chunk:
            return depth_N // self.chunk * self.chunk
        return (depth_N - self.window + 1).clamp_min(0) if self.window else torch.zeros_like(depth_N)


class AbstractAttention(ABC):
    """A way to compute attention over packs, for one model."""

    name: ClassVar[str]
    """As recipes write it."""

    step: ClassVar[int] = LENGTH_STEP
    """Packs are filled up to a multiple of so many tokens."""

    shares: ClassVar[bool] = True
    """Whether this can compute packs in which a token is part of several sequences."""

    def __init__(self, base: PreTrainedModel, own: str) -> None:
        """Take a transformers model, and the name of the attention that it came with."""
        self.base, self.own = base, own

    @abstractmethod
    def refusal(self) -> str | None:
        """Return why this cannot compute the model's attention where the model is; None where it can."""

    @abstractmethod
    def mask(self, depth_N: Tensor, reach_N: Tensor, span: Span) -> Any:
        """Return what goes through the model as ``attention_mask``; of four dimensions, so that none touches it."""

    def masks(self, depth_N: Tensor, reach_N: Tensor) -> Any:
        """Return the mask of a pack; a dictionary of one for each layer type where the model mixes them.

        Raises :class:`UnsupportedAttentionError` for layer types that are no attention to earlier tokens.
        """
        return by_layer_type(self.base.config.get_text_config(), lambda span: self.mask(depth_N, reach_N, span))


def sees(depth_N: Tensor, reach_N: Tensor, oldest_N: Tensor) -> Tensor:
    """Return ``[N, N]``: whether the row's token sees the column's."""
    at_N = torch.arange(len(depth_N), device=depth_N.device)
    sees_NN = (at_N[None, :] <= at_N[:, None]) & (at_N[:, None] < reach_N[None, :])
    return sees_NN & (depth_N[None, :] >= oldest_N[:, None])


def is_shared(depth_N: Tensor, reach_N: Tensor) -> bool:
    """Return whether a token of the pack is part of several sequences."""
    follows = depth_N[1:] == depth_N[:-1] + 1
    # what begins at depth 0 begins a sequence; a run that begins deeper, or whose reach changes, has branched off
    return bool(((~follows & (depth_N[1:] != 0)) | (follows & (reach_N[1:] != reach_N[:-1]))).any())


def by_layer_type(config: Any, mask: Callable[[Span], Any]) -> Any:
    """Return what *mask* makes of a span; of each layer type's where *config* mixes types."""
    types = getattr(config, "layer_types", None)
    if others := sorted(set(types or ()) - {FULL, SLIDING, CHUNKED}):
        raise UnsupportedAttentionError(f"layers of type {', '.join(others)}")
    spans = {FULL: Span(), SLIDING: Span(window=sliding_window(config) or 0)}
    if types is None:
        return mask(spans[SLIDING])
    if CHUNKED in types:
        spans[CHUNKED] = Span(chunk=int(config.attention_chunk_size))
    kinds = sorted(set(types))
    if all(spans[kind] == Span() for kind in kinds):
        return mask(Span())
    return {kind: mask(spans[kind]) for kind in kinds}


def sliding_window(config: Any) -> int | None:
    """Return how many tokens back the windowed layers of *config* see; None where no layer has a window."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if (
        window is None
        or (types is not None and SLIDING not in types)
        or not getattr(config, "use_sliding_window", True)
    ):
        return None
    return int(window)


def compute_type(tensor: Tensor) -> torch.dtype:
    """Return the type in which attention computes: autocast's where it is on, as SDPA would."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def tensor_mask(depth_N: Tensor, reach_N: Tensor, span: Span, dtype: torch.dtype) -> Tensor:
    """Return ``[1, 1, 4, N]``: reach, depth, smallest depth seen, and window, for kernels that cut up a forest."""
    rows = (reach_N, depth_N, span.oldest(depth_N), torch.full_like(depth_N, span.window))
    return torch.stack(rows).to(dtype)[None, None]


def has_rows(mask: Any, dtype: torch.dtype) -> bool:
    """Return whether *mask* is what :func:`tensor_mask` made of *dtype*."""
    return isinstance(mask, Tensor) and mask.dtype == dtype and mask.ndim == 4
