"""Attention over a pack: which token sees which, and how to compute it without the pairs that do not.

A pack reaches the attention layers as its own mask: transformers hands a four-dimensional ``attention_mask`` to every
layer untouched, so an integer one ``[1, 1, 3, N]`` (reach, depth, window) carries the forest, and the function that we
register with transformers reads it.  Any other mask means ordinary attention (generation), which is left to SDPA.

A forest falls into segments: runs of tokens with one ``reach``.  Each segment's tokens see themselves causally, and
every later token up to ``reach`` sees all of them.  So attention is a causal part for each segment (short ones batched)
and one unmasked part for each segment that has descendants, merged by their log-sum-exps.  No pair of tokens that do
not see each other is ever computed, and a shared prompt's keys are never copied.

Legend: N tokens of a pack, H query heads, K key-value heads, G = H / K, D head size, B segments in a batch, L tokens in
the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL, SLIDING = "full_attention", "sliding_attention"
NAME = "tunesmith_forest"

# up to this length plain matrix products beat the flash kernel on a CPU (measured: 1.2 against 3.2 ms at 16 tokens)
_SHORT = 64
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


class UnsupportedAttentionError(NotImplementedError):
    """The layer asks for something that segment-wise attention does not do; the engine then uses dense masks."""


def forest_masks(depth_N: Tensor, reach_N: Tensor, config: Any) -> Tensor | dict[str, Tensor]:
    """Return the integer mask that carries a forest through the model, one a layer type where *config* mixes them."""
    return _by_layer_type(config, lambda window: _forest_mask(depth_N, reach_N, window))


def dense_masks(depth_N: Tensor, reach_N: Tensor, config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Return the mask ``[1, 1, N, N]`` of a forest, one a layer type where *config* mixes them.

    Boolean, or additive in *dtype* for models whose attention is ``eager``: the reference for every other way.
    """

    def mask(window: int | None) -> Tensor:
        sees_NN = _sees(depth_N, reach_N, window)
        if config._attn_implementation != "eager":
            return sees_NN[None, None]
        return torch.zeros_like(sees_NN, dtype=dtype).masked_fill_(~sees_NN, torch.finfo(dtype).min)[None, None]

    return _by_layer_type(config, mask)


def _sees(depth_N: Tensor, reach_N: Tensor, window: int | None) -> Tensor:
    """Return ``[N, N]``: whether the row's token sees the column's; a *window* of 0 or None is none."""
    at_N = torch.arange(len(depth_N), device=depth_N.device)
    sees_NN = (at_N[None, :] <= at_N[:, None]) & (at_N[:, None] < reach_N[None, :])
    return sees_NN & (depth_N[:, None] - depth_N[None, :] < window) if window else sees_NN


def _by_layer_type(config: Any, mask: Any) -> Tensor | dict[str, Tensor]:
    types = getattr(config, "layer_types", None)
    if others := sorted(set(types or ()) - {FULL, SLIDING}):
        raise UnsupportedAttentionError(f"layers of type {', '.join(others)}")
    window = sliding_window(config)
    if window is None or types is None:
        result: Tensor = mask(window)
        return result
    masks = {FULL: mask(None), SLIDING: mask(window)}
    return {kind: masks[kind] for kind in set(types)}


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


def row_mask(reach_N: Tensor, width: int) -> Tensor:
    """Return the padding mask ``[R, W]`` of a pack with one sequence a row: 1 for tokens, 0 for filling."""
    return (reach_N > 0).view(-1, width).long()


def use_forest_attention(model: PreTrainedModel) -> bool:
    """Let *model* use segment-wise attention for packs; return whether its code offers the choice."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    try:
        model.set_attn_implementation(NAME)
    except ValueError:
        return False
    return bool(model.config._attn_implementation == NAME)


def _forest_mask(depth_N: Tensor, reach_N: Tensor, window: int | None) -> Tensor:
    mask = torch.stack([reach_N, depth_N, torch.full_like(depth_N, window or 0)])[None, None]
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
    return ForestPlan(tuple(batches), shared)


def _batch(segments: list[tuple[int, int]]) -> _Batch:
    bounds = torch.tensor(segments)
    lengths = bounds[:, 1] - bounds[:, 0]
    at = torch.arange(int(lengths.max()))[None, :]
    return _Batch((bounds[:, :1] + at).minimum(bounds[:, 1:] - 1), at < lengths[:, None])


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: ``[1, H, N, D]`` in, ``[1, N, H, D]`` out."""
    if attention_mask is None or attention_mask.dtype != torch.int64 or attention_mask.ndim != 4:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    unusual = [n for n in ("softcap", "s_aux", "position_bias", "head_mask") if kwargs.get(n) is not None]
    if unusual or value.shape[-1] != query.shape[-1]:
        raise UnsupportedAttentionError(f"attention with {', '.join(unusual) or 'unequal head sizes'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    reach_N, depth_N, windows_N = attention_mask[0, 0]
    window = int(windows_N[0])
    # a window that matters in this pack; dropout, which only shows in training, when the layout has long been chosen
    if dropout or (window and int(depth_N.max()) >= window):
        grouped = key.shape[1] != query.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, _sees(depth_N, reach_N, window)[None, None], dropout, scale=scale, enable_gqa=grouped
        )
        return out.transpose(1, 2), None
    plan = getattr(attention_mask, "plan", None) or plan_forest(reach_N, depth_N)
    out_NHD = segment_attention(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), plan, scale)
    return out_NHD[None], None


def segment_attention(q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, plan: ForestPlan, scale: float) -> Tensor:
    """Return the attention ``[N, H, D]`` of a forest on the CPU; under autocast in its type, as SDPA would be."""
    device = q_NHD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q_NHD.dtype
    q_NHD, k_NKD, v_NKD = q_NHD.to(dtype), k_NKD.to(dtype), v_NKD.to(dtype)
    # autocast would turn the products that are float32 on purpose into bfloat16 ones
    with torch.autocast(device, enabled=False):
        out_NHD: Tensor = _ForestAttention.apply(q_NHD, k_NKD, v_NKD, plan, scale)  # type: ignore[no-untyped-call]
    return out_NHD


class _ForestAttention(torch.autograd.Function):
    """Segment-wise attention on the CPU: ``query [N, H, D]``, ``key``, ``value`` ``[N, K, D]`` -> ``[N, H, D]``.

    Scores and sums are float32.  Short segments multiply in the type that comes in; the flash kernel is given float32,
    since the CPU's bfloat16 backward is slower.
    The backward pass uses that, given the merged output and log-sum-exp, each part's gradients are independent.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: ForestPlan, scale: float) -> Tensor:
        q, k, v = query, key, value
        out = q.new_empty(q.shape, dtype=torch.float32)
        total_NH = q.new_empty(q.shape[:2], dtype=torch.float32)
        for batch in plan.batches:
            part, part_total = _causal(q, k, v, batch, scale)
            _scatter(out, part, batch)
            _scatter(total_NH, part_total, batch)
        for shared in plan.shared:
            at = slice(shared.end, shared.reach)
            part, part_total = _unmasked(q[at], k[shared.start : shared.end], v[shared.start : shared.end], scale)
            merged = torch.logaddexp(total_NH[at], part_total)
            out[at] = out[at] * (total_NH[at] - merged).exp()[..., None] + part * (part_total - merged).exp()[..., None]
            total_NH[at] = merged
        ctx.save_for_backward(query, key, value, out, total_NH)
        ctx.plan, ctx.scale = plan, scale
        return out.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total_NH = ctx.saved_tensors
        q, k, v = query, key, value
        g = gradients[0]
        dq, dk, dv = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
        for batch in ctx.plan.batches:
            parts = _causal_backward((g, q, k, v, out, total_NH), batch, ctx.scale)
            for whole, part in zip((dq, dk, dv), parts, strict=True):
                _scatter(whole, part, batch)
        for shared in ctx.plan.shared:
            at, keys = slice(shared.end, shared.reach), slice(shared.start, shared.end)
            parts = _unmasked_backward(g[at], q[at], k[keys], v[keys], out[at], total_NH[at], ctx.scale)
            dq[at] += parts[0]
            dk[keys] += parts[1]
            dv[keys] += parts[2]
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None, None


def _causal(q: Tensor, k: Tensor, v: Tensor, batch: _Batch, scale: float) -> tuple[Tensor, Tensor]:
    """Return each segment's attention to itself ``[B, L, H, D]`` and its log-sum-exp ``[B, L, H]``.

    Filling stands after the real tokens, so causality alone keeps it out.
    """
    heads = q.shape[1]
    if batch.index.shape[1] > _SHORT:
        out, total = _flash(*_per_head(q, k, v, batch), 0.0, True, scale=scale)
        return out.transpose(1, 2), total.transpose(1, 2)
    q3, k3, v3 = _folded(q, k, v, batch)
    scores = torch.matmul(q3, k3.transpose(-1, -2)).float().mul_(scale).add_(_causal_bias(q3, k3))
    total = torch.logsumexp(scores, -1, keepdim=True)
    out = torch.matmul(scores.sub_(total).exp_().to(v3.dtype), v3)
    return _unfold(out, heads), _unfold(total, heads).squeeze(-1)


def _causal_backward(given: tuple[Tensor, ...], batch: _Batch, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients ``[B, L, heads, D]`` of a batch's queries, keys and values from its causal part.

    *given*: the output's gradient, queries, keys, values, the merged output and its log-sum-exp, all of the whole pack.
    """
    g, q, k, v, out, total_NH = given
    query_heads, heads = q.shape[1], k.shape[1]
    g_BLHD = g[batch.index] * batch.real[..., None, None]
    if batch.index.shape[1] > _SHORT:
        o4, t3 = out[batch.index].transpose(1, 2), total_NH[batch.index].transpose(1, 2)
        dq, dk, dv = _flash_backward(
            g_BLHD.float().transpose(1, 2), *_per_head(q, k, v, batch), o4, t3, 0.0, True, scale=scale
        )
        return dq.transpose(1, 2), _add_groups(dk, heads), _add_groups(dv, heads)
    q3, k3, v3 = _folded(q, k, v, batch)
    g3, o3, t3 = (_fold(x, heads) for x in (g_BLHD, out[batch.index], total_NH[batch.index][..., None]))
    p = torch.matmul(q3, k3.transpose(-1, -2)).float().mul_(scale).add_(_causal_bias(q3, k3)).sub_(t3).exp_()
    dv = torch.matmul(p.to(g3.dtype).transpose(-1, -2), g3)
    ds = torch.matmul(g3, v3.transpose(-1, -2)).float().sub_((g3 * o3).sum(-1, keepdim=True)).mul_(p).mul_(scale)
    ds = ds.to(q3.dtype)
    dq, dk = torch.matmul(ds, k3), torch.matmul(ds.transpose(-1, -2), q3)
    return _unfold(dq, query_heads), dk.transpose(1, 2), dv.transpose(1, 2)


def _unmasked(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the attention of all queries to all keys ``[n, H, D]`` and its log-sum-exp ``[n, H]``."""
    heads, query_heads = k.shape[1], q.shape[1]
    k4, v4 = k.float().transpose(0, 1)[None], v.float().transpose(0, 1)[None]
    out, total = _flash(_fold(q.float()[None], heads), k4, v4, 0.0, False, scale=scale)
    return _unfold(out, query_heads)[0], _unfold(total[..., None], query_heads)[0, ..., 0]


def _unmasked_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total_NH: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    heads, query_heads = k.shape[1], q.shape[1]
    g3, q3, o3, t3 = (_fold(x.float()[None], heads) for x in (g, q, out, total_NH[..., None]))
    k4, v4 = k.float().transpose(0, 1)[None], v.float().transpose(0, 1)[None]
    dq, dk, dv = _flash_backward(g3, q3, k4, v4, o3, t3[..., 0], 0.0, False, scale=scale)
    return _unfold(dq, query_heads)[0], dk[0].transpose(0, 1), dv[0].transpose(0, 1)


def _scatter(whole: Tensor, part: Tensor, batch: _Batch) -> None:
    """Put a batch's results ``[B, L, …]`` at their tokens; filling is put nowhere."""
    if bool(batch.real.all()):
        whole[batch.index.flatten()] = part.flatten(0, 1).to(whole.dtype)
    else:
        whole[batch.index[batch.real]] = part[batch.real].to(whole.dtype)


def _fold(x_BLHD: Tensor, heads: int) -> Tensor:
    """Return ``[B, K, L * G, D]``: the query heads that share a key-value head stand under one another."""
    b, length, query_heads, d = x_BLHD.shape
    grouped = x_BLHD.reshape(b, length, heads, query_heads // heads, d).permute(0, 2, 1, 3, 4)
    return grouped.reshape(b, heads, length * (query_heads // heads), d)


def _unfold(x: Tensor, query_heads: int) -> Tensor:
    """Undo :func:`_fold`: ``[B, K, L * G, D]`` -> ``[B, L, H, D]``."""
    b, heads, rows, d = x.shape
    group = query_heads // heads
    grouped = x.reshape(b, heads, rows // group, group, d).permute(0, 2, 1, 3, 4)
    return grouped.reshape(b, rows // group, query_heads, d)


def _folded(q: Tensor, k: Tensor, v: Tensor, batch: _Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Gather a batch: queries ``[B, K, L * G, D]``, keys and values ``[B, K, L, D]``."""
    return _fold(q[batch.index], k.shape[1]), k[batch.index].transpose(1, 2), v[batch.index].transpose(1, 2)


def _per_head(q: Tensor, k: Tensor, v: Tensor, batch: _Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Gather a batch with keys and values repeated for each query head, ``[B, H, L, D]``, as the kernel wants them."""
    group = q.shape[1] // k.shape[1]
    gathered = (
        x[batch.index].float().transpose(1, 2)
        for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
    )
    return next(gathered), next(gathered), next(gathered)


def _add_groups(x_BHLD: Tensor, heads: int) -> Tensor:
    """Sum gradients over the query heads that share a key-value head: ``[B, L, K, D]``."""
    b, query_heads, length, d = x_BHLD.shape
    return x_BHLD.reshape(b, heads, query_heads // heads, length, d).sum(2).transpose(1, 2)


def _causal_bias(q3: Tensor, k3: Tensor) -> Tensor:
    """Return ``[L * G, L]``: 0 where a folded query row sees a key, minus infinity where it does not."""
    length, rows = k3.shape[2], q3.shape[2]
    bias = torch.full((length, length), float("-inf")).triu_(1)
    return bias.repeat_interleave(rows // length, 0)
