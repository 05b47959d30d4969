"""A quantized base without weights: which linear layers are packed, what they take, and what unpacking them holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunesmith.models.quantization import Quantization, bytes_per_weight
from tunesmith.models.quantized_base import settled_quantization

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunesmith.models.schema import Model


class PackedLinear(nn.Linear):
    """Stands for a quantized layer ``[rows, columns]``: its weight seems whole, and is unpacked for each product."""

    def __init__(self, columns: int, rows: int, bias: bool, quantization: Quantization) -> None:
        """Make it on the meta device."""
        super().__init__(columns, rows, bias, device="meta")
        self.quantization = quantization

    @property
    def bytes_per_weight(self) -> float:
        """Bytes that each of its weights takes, what belongs to it included; its bias is not packed."""
        return bytes_per_weight(self.quantization, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product as the library computes it, peft's defensive copy of it included."""
        kind = self.quantization
        out: Tensor = _Unpacked.apply(x, self.weight, self.bias, kind.keeps_inputs)  # type: ignore[no-untyped-call]
        return out.clone()


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keeps_inputs: bool) -> Tensor:
        ctx.save_for_backward(weight, x if keeps_inputs else None)
        unpacked = weight.to(x.dtype, copy=True)
        return nn.functional.linear(x, unpacked, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (weight, _) = gradients, ctx.saved_tensors
        return gradient @ weight.to(gradient.dtype, copy=True), None, None, None


def pack_linears(base: Any, model: Model) -> int:
    """Replace what loading *model* would pack in *base*, built on the meta device; return how many layers that are."""
    quantization = settled_quantization(model, base.config)
    if quantization is None or not quantization.loses_bits:
        return 0
    layers = dict(_packed_layers(base))
    for name, (columns, rows, bias) in layers.items():
        base.set_submodule(name, PackedLinear(columns, rows, bias, quantization))
    return len(layers)


def _packed_layers(base: Any) -> Iterable[tuple[str, tuple[int, int, bool]]]:
    """Yield name and shape of each layer that transformers quantizes: linear ones but the head and what is excepted."""
    head = base.get_output_embeddings()
    own = getattr(base.config, "quantization_config", None) or {}
    own = own if isinstance(own, dict) else own.to_dict()
    excepted = [*(own.get("llm_int8_skip_modules") or ()), *(own.get("modules_to_not_convert") or ())]
    for name, module in base.named_modules():
        parts = name.split(".")
        if module is head or any(each == name or each in parts for each in excepted):
            continue
        if type(module) is nn.Linear:
            yield name, (module.in_features, module.out_features, module.bias is not None)
        elif type(module).__name__ == "Conv1D":  # GPT-2's linear layer, transposed
            columns, rows = module.weight.shape
            yield name, (columns, rows, True)
