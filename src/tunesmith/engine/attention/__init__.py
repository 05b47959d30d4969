"""Attention over a pack: which token sees which, and several ways to compute it behind one contract.

A pack reaches the attention layers as its own mask: transformers hands a four-dimensional ``attention_mask`` to every
layer untouched, so each backend makes one of a kind of its own, and the one function that is registered with
transformers knows by the mask whose kernel to call.  So every pack may take another backend, and any other mask means
ordinary attention (generation, padded rows), which is left to the attention that the model came with.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tunesmith.engine.attention import flex, segments, varlen
from tunesmith.engine.attention._base import (
    AbstractAttention,
    UnsupportedAttentionError,
    by_layer_type,
    has_rows,
    is_shared,
    sees,
)
from tunesmith.engine.attention.dense import DenseAttention, as_own
from tunesmith.engine.attention.flex import FlexAttention
from tunesmith.engine.attention.segments import SegmentAttention
from tunesmith.engine.attention.varlen import VarlenAttention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

__all__ = ["AbstractAttention", "Backend", "PackAttention", "UnsupportedAttentionError", "by_layer_type", "row_mask"]

Backend = Literal["dense", "segments", "flex", "varlen"]

# the fastest first; each takes the packs that it can serve
_BACKENDS: tuple[type[AbstractAttention], ...] = (SegmentAttention, VarlenAttention, FlexAttention)
_WORDS = {"varlen": "varlen where nothing is shared", "dense": "a mask over all pairs"}
# what models come with -> our name for it
_NAMES = {"sdpa": "tunesmith_packs", "eager": "tunesmith_packs_plain"}


class PackAttention:
    """How one model attends over packs: the backends that can, the best first, and the dense reference last."""

    def __init__(self, base: PreTrainedModel, allowed: Sequence[str] | None = None) -> None:
        """Take a transformers model, and let it use those *allowed* that suit it and its device; None allows all."""
        self.base = base
        given = str(base.config._attn_implementation)
        self.own = next((own for own, name in _NAMES.items() if name == given), given)
        self.reference = DenseAttention(base, self.own)
        self.refused: dict[str, str] = {}
        """Backends that cannot serve the model, and why not."""
        self._fast: list[AbstractAttention] = []
        for kind in _BACKENDS:
            if allowed is not None and kind.name not in allowed:
                continue
            backend = kind(base, self.own)
            if reason := backend.refusal():
                self.refused[kind.name] = reason
            else:
                self._fast.append(backend)
        if self._fast and (reason := _install(base, self.own)):
            for backend in tuple(self._fast):
                self.drop(backend.name, reason)

    @property
    def names(self) -> tuple[str, ...]:
        """The backends in use, the first that serves a pack computes it."""
        return tuple(backend.name for backend in (*self._fast, self.reference))

    @property
    def fast(self) -> bool:
        """Whether anything but the reference is in use."""
        return bool(self._fast)

    def choose(self, depth_N: Tensor, reach_N: Tensor) -> AbstractAttention:
        """Return the backend that computes such a pack."""
        # to find out waits for the device: only where somebody minds
        sharing = not all(backend.shares for backend in self._fast) and is_shared(depth_N, reach_N)
        return next((backend for backend in self._fast if backend.shares or not sharing), self.reference)

    def drop(self, name: str, reason: str) -> None:
        """Use *name* no more; without any other, the model's own attention is back."""
        self._fast = [backend for backend in self._fast if backend.name != name]
        self.refused[name] = reason
        if not self._fast:
            self.base.set_attn_implementation(self.own)

    @contextmanager
    def only_reference(self) -> Iterator[None]:
        """Compute every pack with the dense reference for a while."""
        fast, self._fast = self._fast, []
        try:
            yield
        finally:
            self._fast = fast

    def why(self) -> str:
        """Return what was chosen and refused, in words."""
        chosen = ", else ".join(_WORDS.get(name, name) for name in self.names)
        refused = [f"not {name}: {reason}" for name, reason in self.refused.items()]
        return "; ".join([chosen, *refused])


def _install(base: PreTrainedModel, own: str) -> str | None:
    """Register our function beside *own* and let *base* use it; return why not where its code offers no choice."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    if own not in _NAMES:
        return f"it came with attention of its own kind, {own}"
    AttentionInterface.register(_NAMES[own], partial(_attend, own))
    AttentionMaskInterface.register(_NAMES[own], eager_mask if own == "eager" else sdpa_mask)
    try:
        base.set_attn_implementation(_NAMES[own])
    except ValueError as error:
        return str(error)
    return None if base.config._attn_implementation == _NAMES[own] else "its code has its attention built in"


def _attend(
    own: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Attend as transformers' attention interface asks, with the kernel of whoever made the mask."""
    block = isinstance(attention_mask, BlockMask)
    kernel: Any = None
    if block:
        kernel = flex.attend
    elif has_rows(attention_mask, segments.MASK):
        kernel = segments.attend
    elif has_rows(attention_mask, varlen.MASK):
        kernel = varlen.attend
    if kernel is not None and not dropout:
        result: tuple[Tensor, Any] = kernel(module, query, key, value, attention_mask, **kwargs)
        return result
    if kernel is not None:
        # no kernel drops attention weights, and dropout shows in training only, when the backend has long been chosen
        seen_NN = (
            flex.block_sees(attention_mask, query.shape[2], query.device)
            if block
            else sees(attention_mask[0, 0, 1], attention_mask[0, 0, 0], attention_mask[0, 0, 2])
        )
        attention_mask = as_own(seen_NN, own, query.dtype)
    result = _own_attention(own, module)(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    return result


def _own_attention(own: str, module: torch.nn.Module) -> Any:
    from transformers import AttentionInterface

    # each model's file has an eager attention of its own; transformers takes it from there too
    return (
        vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        if own == "eager"
        else AttentionInterface()["sdpa"]
    )


def row_mask(reach_N: Tensor, width: int) -> Tensor:
    """Return the padding mask ``[R, W]`` of a pack with one sequence a row: 1 for tokens, 0 for filling."""
    return (reach_N > 0).view(-1, width).long()
