"""FlexAttention over a pack: a compiled kernel that skips the blocks of the mask in which no token sees another.

The block mask is made from the forest's intervals, a few numbers a block, never from all pairs: token ``q`` sees ``k``
iff ``k <= q < reach[k]`` and ``depth[k] >= oldest[q]``.  So a block of keys before a block of queries is wholly seen if
its smallest reach is past the last query (and its smallest depth is not too old for any), and not at all if its largest
reach is not past the first.  ``create_block_mask`` would fill ``[N, N]`` to find out, or compile another kernel.

Legend: N tokens of a pack, B = N / 128 blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tunesmith.engine.attention._base import AbstractAttention, Span, compute_type

BLOCK = 128
# below it triton's products have no tile
_SMALLEST_HEAD = 16


class FlexAttention(AbstractAttention):
    """For CUDA: forests of any shape, windows, chunks, capped scores and sinks, through transformers' own function."""

    name = "flex"
    step = BLOCK

    def refusal(self) -> str | None:
        if self.base.device.type != "cuda":
            return f"FlexAttention has no backward pass on {self.base.device.type}"
        config = self.base.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return f"heads of {head} are too small for FlexAttention" if head < _SMALLEST_HEAD else None

    def mask(self, depth_N: Tensor, reach_N: Tensor, span: Span) -> BlockMask:
        return block_mask(depth_N, reach_N, span.oldest(depth_N))


def block_mask(depth_N: Tensor, reach_N: Tensor, oldest_N: Tensor) -> BlockMask:
    """Return the block mask of a forest whose length is a multiple of 128, without waiting for the device."""
    # int32: half the loads of the kernel, which reads three of these for each pair of a partial block
    depth, reach, oldest = (x.to(torch.int32) for x in (depth_N, reach_N, oldest_N))
    depth_B, reach_B, oldest_B = (x.view(-1, BLOCK) for x in (depth, reach, oldest))
    block = torch.arange(len(depth_B), device=depth.device, dtype=torch.int32)
    first_query = block[:, None] * BLOCK
    # what some pair of the block may need, and what suffices for all of its pairs; [queries, keys]
    seen = (reach_B.amax(1)[None, :] > first_query) & (depth_B.amax(1)[None, :] >= oldest_B.amin(1)[:, None])
    whole = (reach_B.amin(1)[None, :] >= first_query + BLOCK) & (depth_B.amin(1)[None, :] >= oldest_B.amax(1)[:, None])
    before, at = block[None, :] < block[:, None], block[None, :] == block[:, None]
    full = before & whole
    partial = (before & seen & ~whole) | at

    def mask_mod(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
        # one function for every span: another would be another kernel to compile
        return (key <= query) & (query < reach[key]) & (depth[key] >= oldest[query])

    return BlockMask.from_kv_blocks(*_ordered(partial), *_ordered(full), BLOCK_SIZE=BLOCK, mask_mod=mask_mod)


def _ordered(blocks_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row has ``[1, 1, B]``, and which, those first ``[1, 1, B, B]``."""
    # stable, so that the kernel walks the keys in the order in which they lie
    indices = blocks_BB.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks_BB.sum(1, dtype=torch.int32)[None, None], indices.to(torch.int32)[None, None]


def block_sees(mask: BlockMask, length: int, device: torch.device) -> Tensor:
    """Return ``[N, N]``: whether the row's token sees the column's, by the mask's own rule."""
    at_N = torch.arange(length, device=device)
    seen: Tensor = mask.mask_mod(at_N[:1], at_N[:1], at_N[:, None], at_N[None, :])
    return seen


def attend(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, **kwargs: Any) -> Any:
    """Attend as transformers' attention interface asks; all of one type, which autocast does not see to here."""
    from transformers.integrations.flex_attention import flex_attention_forward

    dtype = compute_type(query)
    with torch.autocast(query.device.type, enabled=False):
        return flex_attention_forward(module, query.to(dtype), key.to(dtype), value.to(dtype), mask, **kwargs)
