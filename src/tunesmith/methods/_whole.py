"""What methods share that train the model's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from tunesmith.core.errors import UserError
from tunesmith.methods._base import Method

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel


class AbstractWholeModel(Method):
    """Train weights of the model itself; the result is a whole model."""

    needs_plain_weights: ClassVar[str] = "it trains the weights themselves, and packed bits have no gradient"

    def base_model(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", model)

    def save(self, model: nn.Module, folder: Path) -> None:
        cast("PreTrainedModel", model).save_pretrained(folder)


def text_part(model: PreTrainedModel) -> Callable[[str], bool]:
    """Return what says whether the module of a name lies in the part of *model* that reads text."""
    from transformers import PreTrainedModel

    names = {id(module): name for name, module in model.named_modules()}
    decoder, core = model.get_decoder(), names[id(model.base_model)]
    # some call their output head a decoder (ModernBERT)
    inside = names[id(decoder)] if isinstance(decoder, PreTrainedModel) else ""
    if inside not in ("", core):
        return lambda name: name.startswith(f"{inside}.")
    # the parts of the whole that hold a model of anything else: towers for images and sound, what fits them in
    depth = core.count(".") + 1 if core else 0
    away = {
        tuple(name.split(".")[: depth + 1])
        for name, module in model.named_modules()
        if name not in ("", core) and isinstance(module, PreTrainedModel) and module.main_input_name != "input_ids"
    }
    return lambda name: tuple(name.split(".")[: depth + 1]) not in away


def transformer_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the model's repeated blocks: the longest list of modules in what reads text, whatever it is called.

    The list stands in no other: a block may hold more experts than there are blocks.
    """
    from torch import nn

    reads_text = text_part(model)
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and reads_text(name)}
    outer = [m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise UserError(f"method: {type(model).__name__} has no list of blocks; use method: full or lora")
    return max(outer, key=len)
