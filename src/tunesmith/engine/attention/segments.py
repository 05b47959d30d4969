"""Segment-wise attention on the CPU: a forest cut into parts in which every pair of tokens sees each other.

A forest falls into segments: runs of tokens with one ``reach``.  Each segment's tokens see themselves causally, and
every later token up to ``reach`` sees all of them.  So attention is a causal part for each segment (short ones batched)
and one unmasked part for each segment that has descendants, merged by their log-sum-exps.  No pair of tokens that do
not see each other is ever computed, and a shared prompt's keys are never copied.

Legend: N tokens of a pack, H query heads, K key-value heads, G = H / K, D head size, B segments in a batch, L tokens in
the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tunesmith.engine.attention._base import (
    AbstractAttention,
    Span,
    UnsupportedAttentionError,
    compute_type,
    sees,
    tensor_mask,
    unusual_arguments,
)
from tunesmith.engine.attention.dense import as_own

MASK = torch.int64

# up to this length plain matrix products beat the flash kernel on a CPU (measured: 1.2 against 3.2 ms at 16 tokens)
_SHORT = 64
# where every query sees every key, so many scores need no flash kernel (measured: 5 against 12 ms at 32 x 21 tokens)
_SMALL = 2**22
# segments share a batch while the longest is at most so much longer than the shortest
_STRETCH, _SLACK = 1.25, 4

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Batch:
    """Segments of similar length: token indices ``[B, L]``, filled up with the segment's last token."""

    index: Tensor
    real: Tensor
    """Which entries are tokens, ``[B, L]``; the rest is filling."""
    filled: bool
    """Whether any entry is filling."""

    @property
    def length(self) -> int:
        """Tokens of the longest segment."""
        return self.index.shape[1]


@dataclass(frozen=True)
class _Shared:
    """Keys ``[start, end)`` that all queries ``[end, reach)`` see."""

    start: int
    end: int
    reach: int


@dataclass(frozen=True)
class ForestPlan:
    """How the attention of one pack is cut up."""

    batches: tuple[_Batch, ...]
    shared: tuple[_Shared, ...]
    place: Tensor
    """Where each token stands among the entries of all batches, one after the other: ``[N]``."""


class SegmentAttention(AbstractAttention):
    """For the CPU: packed and shared sequences at the price of their own pairs; a window that matters goes dense."""

    name = "segments"

    def refusal(self) -> str | None:
        if self.base.device.type != "cpu":
            return "segment-wise attention is for the CPU"
        return None if self.own == "sdpa" else "its layers cap their scores or have sinks"

    def mask(self, depth_N: Tensor, reach_N: Tensor, span: Span) -> Tensor:
        oldest_N = span.oldest(depth_N)
        if bool(oldest_N.any()):
            return as_own(sees(depth_N, reach_N, oldest_N), self.own, self.base.dtype)
        mask = tensor_mask(depth_N, reach_N, span, MASK)
        # computed once a pack here, not once a layer; an attribute because the mask is all that reaches the layers
        mask.plan = plan_forest(reach_N, depth_N)  # type: ignore[attr-defined]
        return mask


def plan_forest(reach_N: Tensor, depth_N: Tensor) -> ForestPlan:
    """Cut a forest into batches of segments and shared parts."""
    same = (reach_N[1:] == reach_N[:-1]) & (depth_N[1:] == depth_N[:-1] + 1)
    starts = [0, *(torch.nonzero(~same).squeeze(1) + 1).tolist()]
    ends = [*starts[1:], len(reach_N)]
    reaches = reach_N[torch.tensor(starts)].tolist()
    shared = tuple(_Shared(s, e, r) for s, e, r in zip(starts, ends, reaches, strict=True) if r > e)
    batches: list[_Batch] = []
    group: list[tuple[int, int]] = []
    for start, end in sorted(zip(starts, ends, strict=True), key=lambda pair: pair[1] - pair[0]):
        if group and end - start > (group[0][1] - group[0][0]) * _STRETCH + _SLACK:
            batches.append(_batch(group))
            group = []
        group.append((start, end))
    batches.append(_batch(group))
    index = torch.cat([batch.index.flatten() for batch in batches])
    real = torch.cat([batch.real.flatten() for batch in batches])
    place = torch.empty_like(index[: len(reach_N)])
    place[index[real]] = torch.nonzero(real).squeeze(1)
    return ForestPlan(tuple(batches), shared, place)


def _batch(segments: list[tuple[int, int]]) -> _Batch:
    bounds = torch.tensor(segments)
    lengths = bounds[:, 1] - bounds[:, 0]
    at = torch.arange(int(lengths.max()))[None, :]
    real = at < lengths[:, None]
    return _Batch((bounds[:, :1] + at).minimum(bounds[:, 1:] - 1), real, not bool(real.all()))


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
    missing = query.shape[-1] - value.shape[-1]
    if unusual or missing < 0:
        raise UnsupportedAttentionError(f"attention with {', '.join(unusual) or 'values longer than keys'}")
    if missing:  # as latent attention has them (DeepSeek); filled up with zeros, which are left out again
        value = torch.nn.functional.pad(value, (0, missing))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    if torch.compiler.is_compiling():  # engine/compiled.py: opaque.py holds the operator
        shorter = tuple(x.to(compute_type(x)) for x in (q, k, v))
        out_NHD = torch.ops.tunesmith.segment_attention(*shorter, mask, scale)[0]
        return out_NHD[None, ..., : query.shape[-1] - missing], None
    reach_N, depth_N = mask[0, 0, :2]
    plan = getattr(mask, "plan", None) or plan_forest(reach_N, depth_N)
    out_NHD = segment_attention(q, k, v, plan, scale)
    # as transformers' own: some models look at it in another shape
    return out_NHD[None, ..., : query.shape[-1] - missing].contiguous(), None


def segment_attention(q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, plan: ForestPlan, scale: float) -> Tensor:
    """Return the attention ``[N, H, D]`` of a forest on the CPU; under autocast in its type, as SDPA would be."""
    device, dtype = q_NHD.device.type, compute_type(q_NHD)
    q_NHD, k_NKD, v_NKD = q_NHD.to(dtype), k_NKD.to(dtype), v_NKD.to(dtype)
    # autocast would turn the products that are float32 on purpose into bfloat16 ones
    with torch.autocast(device, enabled=False):
        out_NHD: Tensor = _ForestAttention.apply(q_NHD, k_NKD, v_NKD, plan, scale)  # type: ignore[no-untyped-call]
    return out_NHD


class _ForestAttention(torch.autograd.Function):
    """Segment-wise attention on the CPU: ``query [N, H, D]``, ``key``, ``value`` ``[N, K, D]`` -> ``[N, H, D]``.

    Everything is *folded* first: ``[K, N, G, D]``, the query heads of a key-value head beside one another, so that a
    batch of segments is one gather of rows and needs no other copy.  Sums are float32; what the flash kernel is given
    is float32 too, since the CPU's bfloat16 backward is slower.
    The backward pass uses that, given the merged output and log-sum-exp, each part's gradients are independent.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: ForestPlan, scale: float) -> Tensor:
        out, total_NH = attend_forest(query, key, value, plan, scale)
        ctx.save_for_backward(query, key, value, out, total_NH)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *attend_forest_backward(gradients[0], ctx.saved_tensors, ctx.plan, ctx.scale), None, None


def attend_forest(query: Tensor, key: Tensor, value: Tensor, plan: ForestPlan, scale: float) -> tuple[Tensor, Tensor]:
    """Return the attention ``[N, H, D]`` and the log-sum-exp of its scores ``[N, H]``, float32."""
    q, k, v = (_fold(x, key.shape[1]) for x in (query, key, value))
    parts = [_causal(_gather(q, b), _gather(k, b), _gather(v, b), b, scale) for b in plan.batches]
    out, total = (_in_order(list(part), plan) for part in zip(*parts, strict=True))
    if plan.shared:
        out = out.float()
    for shared in plan.shared:
        at, keys = slice(shared.end, shared.reach), slice(shared.start, shared.end)
        part, part_total = _unmasked(q[:, at], k[:, keys], v[:, keys], scale)
        share = torch.sigmoid(part_total - total[:, at])  # of the weights that lie in this part
        out[:, at].lerp_(part.float(), share)
        total[:, at] = torch.logaddexp(total[:, at], part_total)
    return _unfold(out.to(query.dtype)), _unfold(total).squeeze(2)


def attend_forest_backward(
    gradient: Tensor, given: tuple[Tensor, ...], plan: ForestPlan, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values.

    *given*: queries, keys, values, and what :func:`attend_forest` returned for them.
    """
    query, key, value, whole, total_NH = given
    q, k, v, g, out = (_fold(x, key.shape[1]) for x in (query, key, value, gradient, whole))
    total, along = _fold(total_NH[..., None], key.shape[1]), (g.float() * out).sum(-1, keepdim=True)
    folded = (q, k, v, g, out, total, along)
    parts = [_causal_backward(tuple(_gather(x, batch) for x in folded), batch, scale) for batch in plan.batches]
    dq, dk, dv = (_in_order(list(part), plan) for part in zip(*parts, strict=True))
    for shared in plan.shared:
        at, keys = slice(shared.end, shared.reach), slice(shared.start, shared.end)
        seen = (q[:, at], k[:, keys], v[:, keys], g[:, at], out[:, at], total[:, at], along[:, at])
        extra = _unmasked_backward(seen, scale)
        dq[:, at] += extra[0]
        dk[:, keys] += extra[1]
        dv[:, keys] += extra[2]
    return _unfold(dq), _unfold(dk), _unfold(dv)


def _fold(x_NHD: Tensor, heads: int) -> Tensor:
    """Return ``[K, N, G, D]`` of ``[N, H, D]``."""
    n, _, size = x_NHD.shape
    return x_NHD.reshape(n, heads, -1, size).transpose(0, 1).contiguous()


def _unfold(x_KNGD: Tensor) -> Tensor:
    """Undo :func:`_fold`."""
    return x_KNGD.transpose(0, 1).flatten(1, 2)


def _gather(x_KNGD: Tensor, batch: _Batch) -> Tensor:
    """Return a batch's rows ``[K, B, L, G, D]``."""
    rows = x_KNGD.index_select(1, batch.index.flatten())
    return rows.view(rows.shape[0], *batch.index.shape, *rows.shape[2:])


def _in_order(parts: list[Tensor], plan: ForestPlan) -> Tensor:
    """Return the batches' results ``[K, B, L, G, D]`` as ``[K, N, G, D]``, each at its token, without the filling."""
    flat = [part.flatten(1, 2) for part in parts]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, 1)).index_select(1, plan.place)


def _rows(x: Tensor) -> Tensor:
    """Return a batch for batched products: ``[K, B, L, G, D]`` -> ``[K * B, L * G, D]``."""
    return x.flatten(0, 1).flatten(1, 2)


def _causal(q: Tensor, k: Tensor, v: Tensor, batch: _Batch, scale: float) -> tuple[Tensor, Tensor]:
    """Return each segment's attention to itself ``[K, B, L, G, D]`` and its log-sum-exp ``[K, B, L, G, 1]``.

    Filling stands after the real tokens, so causality alone keeps it out.
    """
    if batch.length > _SHORT:
        out, total = _flash(*_per_head(q, k, v), 0.0, True, scale=scale)
        return _from_heads(out, q), _from_heads(total[..., None], q)
    scores = _scores(_rows(q), _rows(k), scale, causal=True)
    p, total = _softmax(scores)
    out = torch.bmm(p.to(v.dtype), _rows(v))
    return out.view(q.shape), total.view(*q.shape[:-1], 1)


def _causal_backward(given: tuple[Tensor, ...], batch: _Batch, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a batch's queries, keys and values from its causal part.

    *given*, each ``[K, B, L, G, D]``: queries, keys, values, the output's gradient, the merged output, its log-sum-exp
    and the product of the two before.
    """
    q, k, v, g, out, total, along = given
    if batch.filled:  # what a filling token looks at has no weight, so that nothing comes from it
        total = total.masked_fill(~batch.real[None, :, :, None, None], float("inf"))
    if batch.length > _SHORT:
        g4, o4, t4 = (_to_heads(x).float() for x in (g, out, total))
        dq, dk, dv = _flash_backward(g4, *_per_head(q, k, v), o4, t4[..., 0], 0.0, True, scale=scale)
        dq, dk, dv = (_from_heads(x, q) for x in (dq, dk, dv))
        return dq.to(q.dtype), dk.sum(3, keepdim=True).to(k.dtype), dv.sum(3, keepdim=True).to(v.dtype)
    q3, k3, v3, g3 = _rows(q), _rows(k), _rows(v), _rows(g)
    dq, dk, dv = _product_gradients((q3, k3, v3, g3, _rows(total), _rows(along)), scale, causal=True)
    return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)


def _unmasked(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the attention of all queries ``[K, n, G, D]`` to all keys ``[K, m, 1, D]`` and its log-sum-exp."""
    q3, k3, v3 = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)
    if q3.shape[0] * q3.shape[1] * k3.shape[1] > _SMALL:
        out, total = _flash(q3.float()[None], k3.float()[None], v3.float()[None], 0.0, False, scale=scale)
        return out[0].view(q.shape), total[0].view(*q.shape[:-1], 1)
    p, total = _softmax(_scores(q3, k3, scale, causal=False))
    return torch.bmm(p.to(v.dtype), v3).view(q.shape), total.view(*q.shape[:-1], 1)


def _unmasked_backward(given: tuple[Tensor, ...], scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values that see each other; *given* as in :func:`_causal_backward`."""
    q, k, v, *_ = given
    q3, k3, v3, g3, o3, t3, a3 = (x.flatten(1, 2) for x in given)
    if q3.shape[0] * q3.shape[1] * k3.shape[1] > _SMALL:
        floats = (x.float()[None] for x in (g3, q3, k3, v3, o3))
        dq, dk, dv = (x[0] for x in _flash_backward(*floats, t3[None, ..., 0], 0.0, False, scale=scale))
    else:
        dq, dk, dv = _product_gradients((q3, k3, v3, g3, t3, a3), scale, causal=False)
    return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)


def _scores(q3: Tensor, k3: Tensor, scale: float, *, causal: bool) -> Tensor:
    """Return the scaled scores of batched rows in float32."""
    if not causal:
        return torch.bmm(q3, k3.transpose(1, 2)).float().mul_(scale)
    bias = _causal_bias(k3.shape[1], q3.shape[1] // k3.shape[1], q3.dtype)
    return torch.baddbmm(bias, q3, k3.transpose(1, 2), alpha=scale).float()


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of *scores*, in their place, and the log-sum-exp."""
    total = torch.logsumexp(scores, -1, keepdim=True)
    return scores.sub_(total).exp_(), total


def _product_gradients(given: tuple[Tensor, ...], scale: float, *, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    q3, k3, v3, g3, t3, a3 = given
    p = _scores(q3, k3, scale, causal=causal).sub_(t3).exp_()
    dv = torch.bmm(p.to(g3.dtype).transpose(1, 2), g3)
    ds = torch.bmm(g3, v3.transpose(1, 2)).float().sub_(a3).mul_(p).mul_(scale).to(q3.dtype)
    return torch.bmm(ds, k3), torch.bmm(ds.transpose(1, 2), q3), dv


def _to_heads(x: Tensor) -> Tensor:
    """Return ``[B, H, L, D]`` of ``[K, B, L, G, D]``."""
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)


def _from_heads(x_BHLD: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`_to_heads` for a batch shaped like the queries *like*."""
    b, _, length, size = x_BHLD.shape
    return x_BHLD.reshape(b, like.shape[0], like.shape[3], length, size).permute(1, 0, 3, 2, 4)


def _per_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch ``[B, H, L, D]`` with keys and values repeated for each query head, as the kernel wants them."""
    group = q.shape[3]
    repeated = (x.expand(-1, -1, -1, group, -1) for x in (k, v))
    first, second, third = (_to_heads(x).float() for x in (q, *repeated))
    return first, second, third


@lru_cache(maxsize=256)
def _causal_bias(length: int, group: int, dtype: torch.dtype) -> Tensor:
    """Return ``[L * G, L]``: 0 where a folded query row sees a key, minus infinity where it does not."""
    bias = torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)
    return bias.repeat_interleave(group, 0)
