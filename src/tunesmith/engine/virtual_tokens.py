"""Trained virtual tokens in front of every sequence: the root of a pack's forest.

peft puts them there in its own ``forward``, which knows rows only; here they go where packs go.

Legend: V virtual tokens, N tokens of a pack, R rows, W tokens a row, D hidden size.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class VirtualTokens:
    """The virtual tokens of a peft model: embeddings (prompt tuning) or keys and values (prefix tuning)."""

    def __init__(self, model: Any) -> None:
        """Take the peft *model*."""
        self._model = model
        self.count: int = model.active_peft_config.num_virtual_tokens
        self.in_cache: bool = model.active_peft_config.peft_type == "PREFIX_TUNING"

    def embed(self, rows: Tensor) -> Tensor:
        """Return the embeddings ``[R, V + W, D]`` of *rows* ``[R, W]`` with the virtual tokens in front."""
        words: Tensor = self._model.get_base_model().get_input_embeddings()(rows)
        return torch.cat((self._model.get_prompt(batch_size=len(rows)).to(words.dtype), words), 1)

    def cache(self, rows: int) -> Any:
        """Return a cache that holds the virtual tokens' keys and values for so many *rows*."""
        return self._model.get_prompt(batch_size=rows)

    def see_in_rows(self, mask: Tensor) -> Tensor:
        """Return the padding mask ``[R, V + W]`` of rows whose own is *mask* ``[R, W]``."""
        return torch.cat((mask.new_ones(len(mask), self.count), mask), 1)

    def see_in_cache(self, masks: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Return *masks* ``[1, 1, N, N]`` as ``[1, 1, N, V + N]``: every token sees what stands in the cache."""
        if isinstance(masks, dict):
            return {name: self._see(mask) for name, mask in masks.items()}
        return self._see(masks)

    def _see(self, mask: Tensor) -> Tensor:
        shape = (*mask.shape[:-1], self.count)
        # True where masks say who sees whom, 0 where they are added to the scores
        seen = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
        return torch.cat((seen, mask), -1)

    def plant(self, depth_N: Tensor, reach_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return depth and reach ``[V + N]`` of the forest on the virtual tokens as its root."""
        root = torch.arange(self.count, device=depth_N.device)
        whole = torch.full_like(root, self.count + len(reach_N))
        return torch.cat((root, depth_N + self.count)), torch.cat((whole, reach_N + self.count))


def find_virtual_tokens(model: nn.Module) -> VirtualTokens | None:
    """Return the virtual tokens of *model* where it is a peft model that has some."""
    if "peft" not in sys.modules:  # nobody has made such a model, and to import it takes a second or two
        return None
    from peft import PeftModel

    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return VirtualTokens(model)
    return None
