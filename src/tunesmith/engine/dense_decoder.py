"""Our own forward pass for the dense decoder family (Llama, Mistral, Qwen2, Qwen3): the same layers, less stored.

The weights stay where they are; only the order of work is ours.  A layer is computed from what it stores: its input,
queries, keys and values before norm and rotation, the attention's output, gate and up projections.  All that lies
between (normed inputs, rotated heads, the gated product) is a cheap pass over memory and is computed again by the
backward pass.  The adapters that read one input share one product, and frozen weights get no gradient.

transformers' own modules remain the reference: ``check.py`` compares loss and gradients before the first step and
switches this off where they differ; every case but the plain one takes transformers' way.

Legend: N tokens, D hidden size, I inputs, O outputs, R rank, H heads, W head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.engine.lora import is_plain_lora
from tunesmith.models.quantized_base import is_quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MODELS = ("llama", "mistral", "qwen2", "qwen3")

Backward = Callable[[Tensor], tuple[Tensor | None, ...]]
"""From the gradient of a result to those of what it was made of."""
Step = Callable[..., tuple[Tensor, Backward]]
"""A cheap function of tensors: its result, and how to go back."""


class DenseDecoder:
    """Runs the layers of one model on packs."""

    def __init__(self, base: PreTrainedModel) -> None:
        """Take a model for which :func:`fits` holds."""
        self._model: Any = base.base_model
        self._config = base.config

    def hidden_states(self, tokens_N: Tensor, depth_N: Tensor, masks: Any, *, keep_products: bool) -> Tensor | None:
        """Return the last hidden states ``[1, N, D]``; None where a layer is not plain, such as one with two adapters.

        Where the model's blocks are checkpointed only their inputs are stored, unless *keep_products* asks for the
        results of matrix products too: that is what is stored without checkpointing.
        """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        layers = [_read_layer(layer) for layer in self._model.layers[: self._config.num_hidden_layers]]
        name = self._config._attn_implementation
        # "eager" is not registered: each file of transformers has its own
        if name not in ALL_ATTENTION_FUNCTIONS or any(layer is None for layer in layers):
            return None
        device = tokens_N.device.type
        x_1ND = self._model.embed_tokens(tokens_N[None])
        cos_1NW, sin_1NW = self._model.rotary_emb(x_1ND, depth_N[None])
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_1ND.dtype
        x_ND = x_1ND[0]
        # the types are chosen here; autocast would cast again, and turn float32 sums into shorter ones
        with torch.autocast(device, enabled=False):
            tables = (cos_1NW[0].to(dtype), sin_1NW[0].to(dtype))
            rotate_queries = _Rotation.of(*tables, self._config.num_attention_heads)
            rotations = (rotate_queries, _Rotation.of(*tables, self._config.num_key_value_heads))
            for index, layer in enumerate(layers):
                mask = masks[self._config.layer_types[index]] if isinstance(masks, dict) else masks
                given = (x_ND, layer, rotations, mask, dtype)
                if layer.module.gradient_checkpointing and layer.module.training and not keep_products:
                    x_ND = checkpoint(_run_layer, *given, use_reentrant=False)
                else:
                    x_ND = _run_layer(*given)
            weight, norm = _norm_of(self._model.norm, x_ND.dtype)
            hidden_ND: Tensor = _NormAndRotate.apply(x_ND, weight, norm, None)  # type: ignore[no-untyped-call]
        return hidden_ND[None]


def fits(base: PreTrainedModel) -> bool:
    """Return whether *base* is of the family, on a CPU, with nothing attached that a module's call would run."""
    model: Any = base.base_model
    kind = base.config.model_type
    return (
        base.device.type == "cpu"  # measured there only
        and kind in _MODELS
        # their library knows how to multiply with packed weights
        and not is_quantized(base)
        and type(model).__module__ == f"transformers.models.{kind}.modeling_{kind}"
        and base.config.hidden_act == "silu"
        and not any(_hooked(module) for layer in model.layers for module in layer.modules())
    )


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class _Linear(NamedTuple):
    """A linear layer and its adapter; *a* and *b* are None where it has none."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None
    scale: float = 1.0
    dropout: float = 0.0


@dataclass(frozen=True)
class _Layer:
    """A decoder layer of transformers, and its linear layers as they are now."""

    module: Any
    attention_inputs: tuple[_Linear, ...]
    """Of queries, keys and values."""
    attention_output: _Linear
    gates: tuple[_Linear, ...]
    """Gate and up."""
    down: _Linear


def _read_layer(module: Any) -> Any:
    attention, mlp = module.self_attn, module.mlp
    parts = (module.input_layernorm, module.post_attention_layernorm, attention, mlp)
    # a part that was wrapped or replaced, or a layer that something runs in its own way (compiled blocks)
    if "forward" in vars(module) or any(type(part).__module__ != type(module).__module__ for part in parts):
        return None
    modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    linears = [_read_linear(m) for m in (*modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    if any(linear is None for linear in linears):
        return None
    q, k, v, o, gate, up, down = linears
    return _Layer(module, (q, k, v), o, (gate, up), down)  # type: ignore[arg-type]


def _read_linear(module: Any) -> _Linear | None:
    if type(module) is nn.Linear:
        return _Linear(module.weight, module.bias, None, None)
    if not is_plain_lora(module):
        return None
    base = module.base_layer
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or not active:
        return None if module.merged else _Linear(base.weight, base.bias, None, None)
    if module.merged or len(active) > 1:
        return None
    (name,) = active
    a, b, dropout = module.lora_A[name].weight, module.lora_B[name].weight, module.lora_dropout[name]
    share = dropout.p if isinstance(dropout, nn.Dropout) and module.training else 0.0
    return _Linear(base.weight, base.bias, a, b, module.scaling[name], share)


def _run_layer(
    x_ND: Tensor, layer: _Layer, rotations: tuple[_Rotation, _Rotation], mask: Any, dtype: torch.dtype
) -> Tensor:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    module, attention = layer.module, layer.module.self_attn
    weight, norm = _norm_of(module.input_layernorm, dtype)
    q, k, v = _project(norm, layer.attention_inputs, dtype, x_ND, weight)
    shape = (len(x_ND), -1, attention.head_dim)
    heads = []
    for x, rotation, name in ((q, rotations[0], "q_norm"), (k, rotations[1], "k_norm")):
        weight, norm = _norm_of(getattr(attention, name, None), dtype)
        heads.append(_NormAndRotate.apply(x.view(shape), weight, norm, rotation))  # type: ignore[no-untyped-call]
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    out_1NHW, _ = attend(
        attention,
        *(x_NHW.transpose(0, 1).unsqueeze(0) for x_NHW in (*heads, v.view(shape))),
        mask,
        scaling=attention.scaling,
        dropout=attention.attention_dropout if module.training else 0.0,
    )
    (out,) = _project(_same, (layer.attention_output,), dtype, out_1NHW.reshape(len(x_ND), -1))
    x_ND = x_ND + out
    weight, norm = _norm_of(module.post_attention_layernorm, dtype)
    gate, up = _project(norm, layer.gates, dtype, x_ND, weight)
    (out,) = _project(_gated, (layer.down,), dtype, gate, up)
    return x_ND + out


def _norm_of(module: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return weight and computation of an RMSNorm; both None where a model has none there."""
    return (None, None) if module is None else (module.weight, _Norm(module.variance_epsilon, dtype))


def _same(x: Tensor) -> tuple[Tensor, Backward]:
    return x, lambda g: (g,)


def _gated(gate: Tensor, up: Tensor) -> tuple[Tensor, Backward]:
    active = nn.functional.silu(gate)

    def back(g: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.silu_backward(g * up, gate), g * active

    return active * up, back


@dataclass(frozen=True)
class _Norm:
    """RMSNorm over the last dimension, in float32 as transformers', its result in *dtype*."""

    epsilon: float
    dtype: torch.dtype

    def __call__(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Backward]:
        long = x.float()
        inverse = (long.square().mean(-1, keepdim=True) + self.epsilon).rsqrt_()
        unit = long * inverse
        short = unit.to(x.dtype)

        def back(g: Tensor) -> tuple[Tensor, Tensor | None]:
            g = g.float()
            weight_gradient = (g * short).flatten(0, -2).sum(0).to(weight.dtype) if weight.requires_grad else None
            g = g * weight.float()
            along = (g * unit).mean(-1, keepdim=True)
            return torch.addcmul(g, unit, along, value=-1).mul_(inverse).to(x.dtype), weight_gradient

        return (weight * short).to(self.dtype), back


@dataclass(frozen=True)
class _Rotation:
    """The rotation of heads by position, ``x * cos + rotate_half(x) * sin``, as two products with whole tensors.

    The tables are written out for each head, ``[N, heads, W]``, so that the products run over contiguous memory.
    """

    cos: Tensor
    sin: Tensor
    """The first half with its sign turned, so that ``rotate_half`` is an exchange of halves."""
    sin_back: Tensor
    """The halves of *sin* exchanged: the way back has the same form."""

    @classmethod
    def of(cls, cos_NW: Tensor, sin_NW: Tensor, heads: int) -> _Rotation:
        """Return the rotation for so many heads."""
        first, second = sin_NW.chunk(2, -1)
        tables = (cos_NW, torch.cat((-first, second), -1), torch.cat((second, -first), -1))
        return cls(*(table[:, None].repeat(1, heads, 1) for table in tables))

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(x * self.cos, _exchange_halves(x), self.sin)

    def back(self, g: Tensor) -> Tensor:
        """Return the gradient by what was rotated."""
        return torch.addcmul(g * self.cos, _exchange_halves(g), self.sin_back)


def _exchange_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((second, first), -1)


class _NormAndRotate(torch.autograd.Function):
    """A norm, a rotation, or one after the other; stores the input of the norm and nothing for the rotation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, norm: _Norm | None, rotation: _Rotation | None) -> Tensor:
        ctx.norm, ctx.rotation = norm, rotation
        if norm is not None and weight is not None:
            ctx.save_for_backward(x, weight)
            x, _ = norm(x, weight)
        return x if rotation is None else rotation(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        if ctx.rotation is not None:
            g = ctx.rotation.back(g)
        if ctx.norm is None:
            return g, None, None, None
        _, back = ctx.norm(*ctx.saved_tensors)
        return *back(g), None, None


def _project(step: Step, linears: tuple[_Linear, ...], dtype: torch.dtype, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return each of *linears* applied to what *step* makes of *inputs*."""
    settings = tuple((linear.scale, linear.dropout) for linear in linears)
    tensors = [tensor for linear in linears for tensor in linear[:4]]
    results: tuple[Tensor, ...] = _Project.apply(step, settings, dtype, len(inputs), *inputs, *tensors)  # type: ignore[no-untyped-call]
    return results


class _Project(torch.autograd.Function):
    """Linear layers with adapters behind a step; stores the step's inputs, ``x A'`` and the masks of dropout."""

    @staticmethod
    def forward(
        ctx: Any, step: Step, settings: Any, dtype: torch.dtype, count: int, *tensors: Any
    ) -> tuple[Tensor, ...]:
        linears = _as_linears(settings, tensors[count:])
        h_NI, _ = step(*tensors[:count])
        joint = [linear.a for linear in linears if linear.a is not None and not linear.dropout]
        xa_NR = h_NI @ torch.cat(joint).to(dtype).T if joint else h_NI[:, :0]
        outs: list[Tensor] = []
        adapted: list[Tensor | None] = []
        masks: list[Tensor | None] = []
        for linear in linears:
            bias = None if linear.bias is None else linear.bias.to(dtype)
            outs.append(nn.functional.linear(h_NI, linear.weight.to(dtype), bias))
            mask = own = None
            if linear.a is not None and linear.b is not None:
                if linear.dropout:
                    mask = torch.empty_like(h_NI, dtype=torch.bool).bernoulli_(1 - linear.dropout)
                    own = (h_NI * mask) @ linear.a.to(dtype).T
                else:
                    own, xa_NR = xa_NR.tensor_split([len(linear.a)], 1)
                outs[-1].addmm_(own, linear.b.to(dtype).T, alpha=_factor(linear))
            adapted.append(own)
            masks.append(mask)
        ctx.save_for_backward(*tensors, *adapted, *masks)
        ctx.given = (step, settings, dtype, count)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        step, settings, dtype, count = ctx.given
        size = len(settings)
        saved = ctx.saved_tensors
        inputs, tensors = saved[:count], saved[count : -2 * size]
        adapted, masks = saved[-2 * size : -size], saved[-size:]
        linears = _as_linears(settings, tensors)
        h_NI, back = step(*inputs)
        wanted = any(ctx.needs_input_grad[4 : 4 + count])
        h_gradient: Tensor | None = None
        joint: list[tuple[Tensor, Tensor]] = []
        results: list[Tensor | None] = []
        for linear, g_NO, own_NR, mask in zip(linears, gradients, adapted, masks, strict=True):
            results.append((g_NO.T @ h_NI).to(linear.weight.dtype) if linear.weight.requires_grad else None)
            bias = linear.bias
            results.append(g_NO.sum(0).to(bias.dtype) if bias is not None and bias.requires_grad else None)
            if wanted:
                weight = linear.weight.to(dtype)
                h_gradient = g_NO @ weight if h_gradient is None else h_gradient.addmm_(g_NO, weight)
            if linear.a is None or linear.b is None:
                results += [None, None]
                continue
            inner_NR = (g_NO @ linear.b.to(dtype)).mul_(_factor(linear))
            seen_NI = h_NI if mask is None else h_NI * mask
            results.append((inner_NR.T @ seen_NI).to(linear.a.dtype))
            results.append((g_NO.T @ own_NR).to(linear.b.dtype).mul_(_factor(linear)))
            if h_gradient is not None and mask is not None:
                h_gradient += (inner_NR @ linear.a.to(dtype)).mul_(mask)
            elif mask is None:
                joint.append((inner_NR, linear.a))
        if h_gradient is None:
            return *(None,) * (4 + count), *results
        if joint:
            inner, a = zip(*joint, strict=True)
            h_gradient.addmm_(torch.cat(inner, 1), torch.cat(a).to(dtype))
        return *(None,) * 4, *back(h_gradient), *results


def _as_linears(settings: Any, tensors: Any) -> list[_Linear]:
    return [_Linear(*tensors[4 * at : 4 * at + 4], *one) for at, one in enumerate(settings)]


def _factor(linear: _Linear) -> float:
    return linear.scale / (1 - linear.dropout)
