"""Rank-stabilised LoRA: the update is scaled by 1/√rank, so that high ranks learn as they could (arXiv:2312.03732)."""

from typing import Any

from tunesmith.methods._lora import AbstractLoRA


class RankStabilisedLoRA(AbstractLoRA):
    """Train low-rank adapters whose factor is ``alpha / √rank``: for ranks of 64 and more."""

    def variant(self) -> dict[str, Any]:
        """Return the other scale."""
        return {"use_rslora": True}
