"""LoRA layers as one autograd step: nothing stored that can be had again, no gradient for frozen weights.

peft's layer computes ``W x + B (A x) * s`` as five separate operations, each with its own stored tensors and casts.
Here it is one, equal to rounding.  The layers stay peft's: only the ``forward`` of each instance is set, in this file,
and every case but the plain one (several adapters, DoRA and other variants, merged or disabled adapters, quantized
weights) goes through peft's own.  ``tests/tiny/test_fused_lora.py`` notices when peft changes what it computes.

Legend: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


class _LoRALinear(torch.autograd.Function):
    """``x W' + (x A') B' * scale`` for frozen W; A and B may be of a longer type than x."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes no keywords
        ctx: Any,
        x_TI: Tensor,
        w_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
        in_place: bool,
    ) -> Tensor:
        xa_TR = x_TI @ a_RI.to(x_TI.dtype).T
        out_TO = nn.functional.linear(x_TI, w_OI, bias_O)
        ctx.save_for_backward(x_TI, w_OI, a_RI, b_OR, xa_TR)
        ctx.scale = scale
        add = out_TO.addmm_ if in_place else out_TO.addmm
        return add(xa_TR, b_OR.to(x_TI.dtype).T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g_TO,) = gradients
        x_TI, w_OI, a_RI, b_OR, xa_TR = ctx.saved_tensors
        gb_TR = g_TO @ b_OR.to(g_TO.dtype)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (g_TO @ w_OI).addmm_(gb_TR, a_RI.to(g_TO.dtype), alpha=ctx.scale)
        a_gradient = (gb_TR.T @ x_TI).to(a_RI.dtype).mul_(ctx.scale)
        b_gradient = (g_TO.T @ xa_TR).to(b_OR.dtype).mul_(ctx.scale)
        return x_gradient, None, None, a_gradient, b_gradient, None, None


class _LoRALinearDropout(torch.autograd.Function):
    """The same with dropout before A: only the mask is stored beside x."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, share: float) -> Tensor:
        keep_TI = torch.empty_like(x_TI, dtype=torch.bool).bernoulli_(1 - share)
        xa_TR = (x_TI * keep_TI) @ a_RI.to(x_TI.dtype).T
        ctx.save_for_backward(x_TI, keep_TI, a_RI, b_OR, xa_TR)
        ctx.scale = scale / (1 - share)
        out_TO: Tensor = (xa_TR * ctx.scale) @ b_OR.to(x_TI.dtype).T
        return out_TO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g_TO,) = gradients
        x_TI, keep_TI, a_RI, b_OR, xa_TR = ctx.saved_tensors
        gb_TR = g_TO @ b_OR.to(g_TO.dtype)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (gb_TR @ a_RI.to(g_TO.dtype)).mul_(keep_TI).mul_(ctx.scale)
        a_gradient = (gb_TR.T @ (x_TI * keep_TI)).to(a_RI.dtype).mul_(ctx.scale)
        b_gradient = (g_TO.T @ xa_TR).to(b_OR.dtype).mul_(ctx.scale)
        return x_gradient, a_gradient, b_gradient, None, None


def fuse_lora(model: nn.Module, *, in_place: bool = True) -> int:
    """Let every plain LoRA layer of *model* compute in one step; return how many there are.

    Not *in_place*, it leaves the frozen product as it was and adds into a copy: selective checkpointing keeps products.
    """
    layers = [m for m in model.modules() if is_plain_lora(m)]
    for layer in layers:
        # a method, not a partial: the compiler would take every partial for another function, and compile each block
        layer.forward = MethodType(_forward if in_place else _forward_keeping, layer)
    return len(layers)


def unfuse_lora(model: nn.Module) -> None:
    """Give every LoRA layer peft's own forward back."""
    for module in model.modules():
        own = vars(module).get("forward")
        if isinstance(own, MethodType) and own.__func__ in (_forward, _forward_keeping):
            del module.forward


def is_plain_lora(layer: Any) -> bool:
    """Return whether *layer* is peft's LoRA over a frozen linear layer, without any variant of it."""
    if "peft" not in sys.modules:  # nobody has made such a layer, and to import it takes a second or two
        return False
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear:
        return False
    base = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and not layer.fan_in_fan_out
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
    )


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _run(layer, True, x, *args, **kwargs)


def _forward_keeping(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _run(layer, False, x, *args, **kwargs)


def _run(layer: Any, in_place: bool, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(active) != 1 or args or kwargs or not torch.is_grad_enabled():
        result: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return result
    base, a, b = layer.base_layer, layer.lora_A[active[0]].weight, layer.lora_B[active[0]].weight
    dropout, scale = layer.lora_dropout[active[0]], layer.scaling[active[0]]
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    x_TI = x.reshape(-1, x.shape[-1]).to(dtype)
    weight, bias = base.weight.to(dtype), None if base.bias is None else base.bias.to(dtype)
    share = dropout.p if isinstance(dropout, nn.Dropout) and layer.training else 0.0
    with torch.autocast(device, enabled=False):
        if share:
            out_TO = nn.functional.linear(x_TI, weight, bias)
            out_TO = out_TO + _LoRALinearDropout.apply(x_TI, a, b, scale, share)  # type: ignore[no-untyped-call]
        else:
            out_TO = _LoRALinear.apply(x_TI, weight, bias, a, b, scale, in_place)  # type: ignore[no-untyped-call]
    whole: Tensor = out_TO.view(*x.shape[:-1], -1)
    return whole
