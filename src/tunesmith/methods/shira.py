"""SHiRA: a few chosen entries of each weight train (arXiv:2406.13175)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field

from tunesmith.core.errors import UserError
from tunesmith.methods._layers import READS_WEIGHTS, AbstractLayers
from tunesmith.models.peft_warnings import quiet_peft

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class SHiRA(AbstractLayers):
    """Train a sparse set of the weights themselves: as many as LoRA of that rank would have."""

    peft_config: ClassVar[str] = "ShiraConfig"
    needs_plain_weights: ClassVar[str] = READS_WEIGHTS

    rank: Annotated[int, Field(ge=1)] = 32
    """How many entries train: as many as LoRA of this rank has weights."""

    seed: Annotated[int, Field(ge=0)] = 0
    """What the fixed random part is drawn from; it must stay the same for the adapter to fit."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "random_seed": self.seed,
        }

    def choose(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the modules to adapt; raise :class:`UserError` for one that has fewer entries than should train."""
        chosen = super().choose(model)
        modules = dict(model.named_modules())
        for name in chosen["target_modules"]:
            weight = modules[name].weight
            if self.rank * sum(weight.shape) > weight.numel():
                raise UserError(f"method.rank: {self.rank} is more entries than {name} {tuple(weight.shape)} has")
        return chosen

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Choose entries that train; without values, where none can be drawn, stand as many weights in LoRA's shape."""
        import torch

        if model.device.type != "meta":
            # said aloud, or torch warns that it does not check the indices; peft's are right
            torch.sparse.check_sparse_tensor_invariants.disable()
            return super().apply(model)
        from peft import LoraConfig, get_peft_model

        chosen = self.choose(model)
        with quiet_peft():
            return cast("nn.Module", get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=self.rank, **chosen)))
