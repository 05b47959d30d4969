"""Which token sees which: the pack's rule as the masks that transformers models take.

Legend: N tokens of a pack, R rows, W tokens a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


def dense_masks(depth_N: Tensor, reach_N: Tensor, config: Any) -> Tensor | dict[str, Tensor]:
    """Return the boolean mask ``[1, 1, N, N]`` of a forest pack, or one a layer type where *config* mixes them."""
    at_N = torch.arange(len(depth_N), device=depth_N.device)
    sees_NN = (at_N[None, :] <= at_N[:, None]) & (at_N[:, None] < reach_N[None, :])
    window = sliding_window(config)
    if window is None:
        return sees_NN[None, None]
    near_NN = sees_NN & (depth_N[:, None] - depth_N[None, :] < window)
    types = getattr(config, "layer_types", None)
    if types is None:
        return near_NN[None, None]
    masks = {FULL: sees_NN[None, None], SLIDING: near_NN[None, None]}
    return {kind: masks[kind] for kind in set(types)}


def sliding_window(config: Any) -> int | None:
    """Return how many tokens back the windowed layers of *config* see; None where no layer has a window."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if window is None or (types is not None and SLIDING not in types) or not getattr(config, "use_sliding_window", True):
        return None
    return int(window)


def row_mask(reach_N: Tensor, width: int) -> Tensor:
    """Return the padding mask ``[R, W]`` of a pack with one sequence a row: 1 for tokens, 0 for filling."""
    return (reach_N > 0).view(-1, width).long()
