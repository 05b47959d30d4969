"""Texts as vectors: the mean of a model's last hidden states over all tokens of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


def embed_tokens(model: Any, tokens: Sequence[int]) -> list[float]:
    """Return the mean of the last hidden states of the causal *model* over *tokens*, as long as they are wide.

    Raises :class:`UserError` for a model that gives none.
    """
    with torch.inference_mode():
        found = model.base_model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False)
    states_1LD = getattr(found, "last_hidden_state", None)
    if states_1LD is None:
        raise UserError(f"models of the type {model.config.model_type} give no hidden states, and so no embeddings")
    mean_D: list[float] = states_1LD[0].float().mean(dim=0).tolist()
    return mean_D
