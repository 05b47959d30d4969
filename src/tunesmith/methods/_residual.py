"""What LoRA variants share that begin with a part of the weights: it moves from the base into the adapter.

While such a model trains its base is what is left (W − s·B₀A₀), so that a switched-off adapter leaves no base model.
Saved is an adapter for the ORIGINAL weights, of twice the rank: W + s·(BA − B₀A₀) = W + s·[B, B₀][A, −A₀].
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, cast

from tunesmith.core.errors import UserError
from tunesmith.methods._lora import AbstractLoRA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel


class AbstractResidualLoRA(AbstractLoRA):
    """Train low-rank adapters that begin as a part of the weights."""

    keeps_base: ClassVar[bool] = False
    needs_plain_weights: ClassVar[str] = "it moves a part of each weight, and packed bits have no parts"
    cannot_continue: ClassVar[str] = "what begins as a part of the weights is saved as plain lora: use method: lora"
    adapts_experts: ClassVar[bool] = False

    def move(self, layer: Any) -> None:
        """Set A and B of peft's *layer* to a part of its base weight, and take their product out of that."""
        raise NotImplementedError

    def choose(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the modules to adapt; raise :class:`UserError` where one has too little rank, or is quantized."""
        chosen = super().choose(model)
        modules = dict(model.named_modules())
        for name in chosen["target_modules"]:
            weight = modules[name].weight
            if not weight.is_floating_point():
                raise UserError(f"method: {self.type_name()} needs unquantized weights; use method: lora or loftq")
            if max(self.rank, *self.rank_pattern.values(), 1) > min(weight.shape):
                raise UserError(
                    f"method.rank: {name} has only rank {min(weight.shape)}; lower it, or exclude that module"
                )
        return chosen

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Add the adapters and move a part of the weights into them."""
        wrapped = super().apply(model)
        if model.device.type != "meta":
            self.move_all(wrapped)
        return wrapped

    def move_all(self, model: nn.Module) -> None:
        """Move a part of the weights in every layer, and remember what moved."""
        for layer in adapted_layers(model):
            self.move(layer)
        # on the CPU: it is only looked at when the adapter is saved
        cast("Any", model).moved = {name: factor.clone().cpu() for name, factor in _factors(model).items()}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter for the original weights: what was learnt, minus what moved."""
        import torch
        from safetensors.torch import load_file, save_file

        super().save(model, folder)
        path = folder / "adapter_model.safetensors"
        weights = load_file(path)
        for name, before in cast("Any", model).moved.items():
            down = ".lora_A." in name
            weights[name] = torch.cat((weights[name], -before if down else before), 0 if down else 1).contiguous()
        save_file(weights, path, metadata={"format": "pt"})
        config = copy.deepcopy(cast("Any", model).peft_config["default"])
        config.inference_mode = True
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
        config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
        config.alpha_pattern = {name: 2 * alpha for name, alpha in config.alpha_pattern.items()}
        config.save_pretrained(folder)


def adapted_layers(model: nn.Module) -> Iterator[Any]:
    """Yield peft's LoRA layers over matrices."""
    from peft.tuners.lora.layer import Linear

    return (module for module in model.modules() if isinstance(module, Linear))


def _factors(model: nn.Module) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model)
    return {name: w for name, w in weights.items() if ".lora_A." in name or ".lora_B." in name}
