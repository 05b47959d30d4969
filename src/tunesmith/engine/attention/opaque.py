"""Segment-wise attention as one operator that compilers do not look into: how a pack is cut up is plain Python.

The operator sees tensors only, so the plan is found again by its mask; the plan of the last mask is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith.engine.attention.segments import ForestPlan, attend_forest, attend_forest_backward, plan_forest


class _LastPlan:
    """The plan of the mask that was asked for last: all layers of a pack have the same one, forward and backward."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.plan: ForestPlan | None = None

    def of(self, mask: Tensor) -> ForestPlan:
        """Return the plan of *mask*; compared by value, since an address may belong to another pack by now."""
        if self.plan is None or self.mask is None or not torch.equal(self.mask, mask):
            self.mask, self.plan = mask.clone(), plan_forest(mask[0, 0, 0], mask[0, 0, 1])
        return self.plan


_last = _LastPlan()


@torch.library.custom_op("tunesmith::segment_attention", mutates_args=())
def segment_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the attention ``[N, H, D]`` of *mask*'s forest, and its log-sum-exp ``[N, H]``."""
    out, total = attend_forest(q, k, v, _last.of(mask), scale)
    return out, total


@segment_attention.register_fake
def _(q: Tensor, *_: Tensor | float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("tunesmith::segment_attention_backward", mutates_args=())
def segment_attention_backward(  # noqa: PLR0913 - an operator takes tensors one by one
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, whole: Tensor, total: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    dq, dk, dv = attend_forest_backward(g, (q, k, v, whole, total), _last.of(mask), scale)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@segment_attention_backward.register_fake
def _(
    g: Tensor,  # noqa: ARG001
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *_: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, mask, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, mask)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, whole, total, mask = ctx.saved_tensors
    return (*segment_attention_backward(gradients[0], q, k, v, whole, total, mask, ctx.scale), None, None)


segment_attention.register_autograd(_backward, setup_context=_keep)
