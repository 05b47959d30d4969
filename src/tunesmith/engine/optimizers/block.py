"""Block coordinate descent: one block of the model at a time (BAdam, arXiv:2404.02827)."""

from __future__ import annotations

import random
from typing import Any

import torch


class BlockAdamW(torch.optim.AdamW):
    """AdamW that steps the groups of one ``block`` and forgets its state when it goes on to the next."""

    def __init__(
        self, groups: list[dict[str, Any]], learning_rate: float, *, switch_every: int, order: str, **options: Any
    ) -> None:
        """*switch_every* counts steps; *order* is ``ascending``, ``descending`` or ``random``."""
        super().__init__(groups, lr=learning_rate, **options)
        self.switch_every, self.order = switch_every, order
        self.blocks: list[int] = sorted({group["block"] for group in groups})
        for group in self.param_groups:
            group["taken"] = 0

    def active_block(self) -> int:
        """Return the block that the next step moves."""
        turn: int = self.param_groups[0]["taken"] // self.switch_every
        cycle, place = divmod(turn, len(self.blocks))
        order = {"ascending": self.blocks, "descending": self.blocks[::-1]}.get(self.order)
        return (order or random.Random(cycle).sample(self.blocks, len(self.blocks)))[place]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the active block; the gradients of all others are dropped."""
        assert closure is None
        active = self.active_block()
        if self.param_groups[0]["taken"] % self.switch_every == 0:
            self.state.clear()
        for group in self.param_groups:
            if group["block"] != active:
                for parameter in group["params"]:
                    parameter.grad = None
            group["taken"] += 1
        super().step()
