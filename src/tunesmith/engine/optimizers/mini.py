"""Adam with one second moment for a block of weights (Adam-mini, arXiv:2406.16793)."""

from __future__ import annotations

import math
from typing import Any

import torch


class AdamMini(torch.optim.Optimizer):
    """AdamW whose square is averaged over blocks of consecutive rows.

    A group's ``rows`` says how many rows of each of its weights share one second moment; 0 is all of them.
    """

    def __init__(
        self, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float], epsilon: float
    ) -> None:
        super().__init__(groups, {"lr": learning_rate, "betas": betas, "eps": epsilon})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; *closure* is not supported."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)

    def _step(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        beta1, beta2 = group["betas"]
        blocks = weight.shape[0] // group["rows"] if group["rows"] else 1
        gradient = weight.grad.reshape(blocks, -1)
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(gradient)
            state["square"] = gradient.new_zeros(blocks, 1)
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_(gradient.square().mean(1, keepdim=True), 1 - beta2)
        first, second = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        divisor = (state["square"].sqrt() / math.sqrt(second)).add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_((state["mean"] / divisor).view_as(weight), alpha=-group["lr"] / first)
