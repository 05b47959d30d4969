"""LLaMA-Pro: new blocks between the model's own, which begin as nothing and alone train (arXiv:2401.02415)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field

from tunesmith.core.errors import UserError
from tunesmith.methods._whole import AbstractWholeModel, transformer_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# the last layer of attention and of the feed-forward part, as architectures call them: with zeros there, a block adds 0
_LAST_LAYERS = ("o_proj", "out_proj", "down_proj", "c_proj", "dense", "fc2", "dense_4h_to_h", "fc_out", "wo", "w2")
_PROBE = 8  # tokens that the expanded model is compared on


class LlamaPro(AbstractWholeModel):
    """Add copies of some blocks that at first change nothing, and train only those: new knowledge beside the old."""

    learning_rate: ClassVar[float] = 2e-4

    blocks: Annotated[int, Field(ge=1)] = 4
    """How many blocks are added, spread evenly: each is a copy of the block below it."""

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Insert the blocks; raise :class:`UserError` where the model does not stay the same by it."""
        present = transformer_blocks(model)
        if self.blocks > len(present):
            raise UserError(f"method.blocks: {self.blocks} new ones for the model's {len(present)}; at most as many")
        before = None if model.device.type == "meta" else _probe(model)
        self._insert(model, present)
        if before is not None and not bool((_probe(model) - before).abs().max() <= 1e-3 * before.abs().max()):
            raise UserError(f"method: the blocks of {type(model).__name__} cannot be copied so that nothing changes")
        return model

    def _insert(self, model: PreTrainedModel, present: nn.ModuleList) -> None:
        _give_own_config(model)
        config = model.config.get_text_config()
        count = len(present)
        copied = [(index + 1) * count // self.blocks - 1 for index in range(self.blocks)]
        order = [(index, again) for index in range(count) for again in ([False, True] if index in copied else [False])]
        model.requires_grad_(False)
        own = list(present)
        expanded = [_neutral_copy(own[index], model) if again else own[index] for index, again in order]
        for number, block in enumerate(expanded):
            for module in block.modules():
                for name in ("layer_idx", "layer_id"):  # where a layer finds its part of the cache
                    if name in vars(module):
                        setattr(module, name, number)
        del present[:]
        present.extend(expanded)
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == count:  # layer_types and the like: one entry a block
                setattr(config, name, [value[index] for index, _ in order])
        config.num_hidden_layers = len(order)


def _give_own_config(model: PreTrainedModel) -> None:
    """Let every module of *model* read a copy of its configuration: whoever gave it still describes the base by it."""
    old = model.config
    new = copy.deepcopy(old)
    copies = {id(old): new, id(old.get_text_config()): new.get_text_config()}
    for module in model.modules():
        own = vars(module).get("config")
        if id(own) in copies:
            cast("Any", module).config = copies[id(own)]


def _neutral_copy(block: nn.Module, model: PreTrainedModel) -> nn.Module:
    """Return a copy of *block* that trains and adds nothing to what passes through it."""
    import torch

    config = model.config.get_text_config()
    shared: dict[int, Any] = {id(config): config, id(model.config): model.config}
    new = copy.deepcopy(block, shared).requires_grad_(True)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if any(part in _LAST_LAYERS for part in name.split(".")[-2:]):
                parameter.zero_()
    return new


def _probe(model: PreTrainedModel) -> Tensor:
    import torch

    tokens = torch.arange(min(_PROBE, model.config.get_text_config().vocab_size), device=model.device)[None]
    training = model.training
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=tokens, use_cache=False).logits.float()
    model.train(training)
    return logits
