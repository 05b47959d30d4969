"""Flash attention over sequences of various lengths that lie one after another and share nothing.

torch's own ``varlen_attn``, not transformers' ``flash_attention_2``: it is in every torch with CUDA and needs no
package built for just this torch; and its lengths travel in the mask, which every architecture hands to its layers,
while transformers' ``cu_seq_lens_q`` are keyword arguments that some drop on the way.  A chunk of a chunked layer is a
sequence of its own.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith.engine.attention._base import (
    AbstractAttention,
    Span,
    UnsupportedAttentionError,
    compute_type,
    tensor_mask,
    unusual_arguments,
)

MASK = torch.int32
_LARGEST_HEAD, _HEAD_STEP = 256, 8
_AMPERE = (8, 0)


class VarlenAttention(AbstractAttention):
    """For CUDA in half precision: packs in which nothing is shared; windows and chunks, no capped scores, no sinks."""

    name = "varlen"
    shares = False

    def refusal(self) -> str | None:
        if self.base.device.type != "cuda":
            return f"flash attention over various lengths has no kernel on {self.base.device.type}"
        if torch.version.hip or torch.cuda.get_device_capability(self.base.device) < _AMPERE:
            return "flash attention over various lengths needs an NVIDIA GPU of compute capability 8.0 or newer"
        if "window_size" not in signature(_kernel()).parameters:
            return f"torch {torch.__version__} has no windows in varlen_attn"
        if self.own != "sdpa":
            return "its layers cap their scores or have sinks"
        return None

    def mask(self, depth_N: Tensor, reach_N: Tensor, span: Span) -> Tensor:
        mask = tensor_mask(depth_N, reach_N, span, MASK)
        # computed once a pack here, not once a layer, for it waits for the device
        mask.cut = cut(depth_N, span.oldest(depth_N), span.window)  # type: ignore[attr-defined]
        return mask


class Cut(NamedTuple):
    """A pack as the kernel is told of it."""

    bounds: Tensor
    """Where each sequence (or chunk of one) begins, and the end of the pack: ``[S + 1]``, int32."""
    longest: int
    window: int


def cut(depth_N: Tensor, oldest_N: Tensor, window: int) -> Cut:
    """Return where a pack's sequences begin: at tokens that see none before them."""
    starts = torch.nonzero(depth_N == oldest_N).squeeze(1)
    bounds = torch.cat((starts, starts.new_tensor([len(depth_N)]))).to(torch.int32)
    return Cut(bounds, int(bounds.diff().max()), window)


def attend(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: ``[1, H, N, D]`` in, ``[1, N, H, D]`` out."""
    unusual = unusual_arguments(kwargs)
    size, dtype = query.shape[-1], compute_type(query)
    if unusual or value.shape[-1] != size or size % _HEAD_STEP or size > _LARGEST_HEAD:
        raise UnsupportedAttentionError(f"attention with {', '.join(unusual) or f'heads of {size}'}")
    if dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedAttentionError(f"flash attention in {dtype}")
    _, depth_N, oldest_N, windows_N = mask[0, 0]
    bounds, longest, window = getattr(mask, "cut", None) or cut(depth_N, oldest_N, int(windows_N[0]))
    kernel = _kernel()
    # the first versions share key-value heads without being asked
    grouped = {"enable_gqa": True} if "enable_gqa" in signature(kernel).parameters else {}
    q_NHD, k_NKD, v_NKD = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    out_NHD = kernel(
        q_NHD,
        k_NKD,
        v_NKD,
        bounds,
        bounds,
        longest,
        longest,
        scale=size**-0.5 if scaling is None else scaling,
        window_size=(window - 1 if window else -1, 0),
        **grouped,
    )
    return out_NHD[None], None


def _kernel() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn
