"""A model that takes packs and gives log-probabilities.

Legend: N tokens of a pack, M predictions, D hidden size, R rows, W tokens a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tunesmith.core.errors import UserError
from tunesmith.engine.attention import dense_masks, forest_masks, row_mask, use_forest_attention
from tunesmith.engine.losses import log_probabilities, weighted_log_likelihood

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.engine.pack import Pack


# packs are filled up to a multiple of this: every new shape of a matrix product makes the CPU's library build and keep
# a kernel (seen: 2.4 GB after 200 steps), and compilers compile again
LENGTH_STEP = 64


class PackModel(nn.Module):
    """Wraps *model* (a transformers model, perhaps inside peft) so that one call is one pack.

    It is the module that accelerate wraps, so that every layer of distribution sees one ``forward``.
    """

    def __init__(self, model: nn.Module, base: PreTrainedModel) -> None:
        """Take *base*, the transformers model inside *model*; its layers hold the adapters."""
        super().__init__()
        self.model = model
        self._base = (base,)  # in a tuple, so that torch does not register its parameters a second time
        config = base.config.get_text_config()
        self.cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        own_attention = base.config._attn_implementation
        # what sdpa cannot do (capped scores, sinks) segments cannot either: such models come with their own "eager" one
        self.segments = base.device.type == "cpu" and own_attention == "sdpa" and use_forest_attention(base)
        self._own_attention = own_attention
        self.separate_head = base.base_model is not base and base.get_output_embeddings() is not None

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model inside."""
        return self._base[0]

    def use_dense_attention(self) -> None:
        """Go back to the model's own attention with a mask over all pairs: slower, and every layer understands it."""
        self.segments = False
        self.base.set_attn_implementation(self._own_attention)

    def forward(
        self,
        tokens: Tensor,
        depth: Tensor,
        reach: Tensor,
        source: Tensor,
        target: Tensor,
        width: int,
        coefficient: Tensor | None = None,
    ) -> Tensor:
        """Return ``[M]`` float32: the log-probability of each *target* at its *source*.

        With *coefficient* ``[M]``, return the scalar sum of their products instead, which costs less.
        """
        if not self.separate_head:
            logits_NV = self._run(self.base, tokens, depth, reach, width).logits.flatten(0, 1)
            chosen_MV = logits_NV[source].float().log_softmax(-1)
            chosen_M: Tensor = chosen_MV.gather(1, target[:, None]).squeeze(1)
            return chosen_M if coefficient is None else (coefficient * chosen_M).sum()
        hidden_ND = self._run(self.base.base_model, tokens, depth, reach, width)[0].flatten(0, 1)
        head = cast("nn.Module", self.base.get_output_embeddings())
        hidden_MD = hidden_ND[source]
        if coefficient is None:
            return log_probabilities(hidden_MD, head, target, cap=self.cap, scale=self.scale)
        return weighted_log_likelihood(hidden_MD, head, target, coefficient, cap=self.cap, scale=self.scale)

    def _run(self, module: nn.Module, tokens: Tensor, depth: Tensor, reach: Tensor, width: int) -> Any:
        if width:
            return module(input_ids=tokens.view(-1, width), attention_mask=row_mask(reach, width), use_cache=False)
        tokens, depth, reach = _filled(tokens, depth, reach)
        config = self.base.config.get_text_config()
        masks = (
            forest_masks(depth, reach, config) if self.segments else dense_masks(depth, reach, config, self.base.dtype)
        )
        return module(input_ids=tokens[None], position_ids=depth[None], attention_mask=masks, use_cache=False)


def _filled(tokens: Tensor, depth: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a pack with tokens added that see only each other, so that its length is one of few."""
    extra = -len(tokens) % LENGTH_STEP
    if not extra:
        return tokens, depth, reach
    filling = torch.arange(extra, device=tokens.device)
    return (
        torch.cat((tokens, torch.zeros_like(filling))),
        torch.cat((depth, filling)),
        torch.cat((reach, torch.full_like(filling, len(tokens) + extra))),
    )


def pack_arguments(pack: Pack) -> dict[str, Any]:
    """Return what :meth:`PackModel.forward` takes of a pack of tensors."""
    names = ("tokens", "depth", "reach", "source", "target", "width")
    return {name: getattr(pack, name) for name in names}


def default_device(wanted: str) -> torch.device:
    """Return the device asked for; ``auto`` takes an accelerator where there is one.

    Raises :class:`UserError` where this machine has no such device.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = there or torch.device("cpu")
    if wanted not in ("auto", "cpu", found.type):
        raise UserError(f"device: {wanted} was asked for, but this machine has {found.type}; use auto")
    return torch.device("cpu") if wanted == "cpu" else found
