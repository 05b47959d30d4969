"""Adam on gradients of low rank: GaLore (arXiv:2403.03507) and APOLLO (arXiv:2412.05270).

A matrix's gradient ``G [m, n]`` is seen through a basis of *rank* directions of its shorter side, ``R = G P`` (or
``P' G``); Adam's state has the shape of ``R``.  Its normalised step ``N`` goes back in one of two ways:

- GaLore, whose basis are the leading singular vectors of ``G``:  ``W -= rate * scale * N P'``
- APOLLO, whose basis is random: ``W -= rate * sqrt(scale) * s G``, with ``s = |N| / |R|`` for each channel (the longer
  side) or for the whole tensor, its norm growing at most 1% a step (Fira, arXiv:2410.01623)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tunesmith.engine.optimizers.composite import Composite

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_GROWTH = 1.01
_TINY = 1e-8  # beside norms, as the papers' code has it


class LowRankAdam(Composite):
    """Adam on the projected gradients of the groups with a ``rank``; plain Adam on the others.

    Such a group has ``rank``, ``refresh_every`` (steps), ``scale`` and ``scaling``: ``project`` is GaLore, ``channel``
    and ``tensor`` are APOLLO.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        betas: tuple[float, float],
        make_adam: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    ) -> None:
        """*make_adam* gives the Adam that keeps the state; each matrix has a stand-in of the projected shape in it."""
        self.betas = betas
        self.place = {p: place for place, p in enumerate(p for group in groups for p in group["params"])}
        self.stand_ins: dict[nn.Parameter, nn.Parameter] = {}
        inside = [self._inner_group(group) for group in groups]
        super().__init__(groups, [make_adam(inside)], {"lr": learning_rate})

    def _inner_group(self, group: dict[str, Any]) -> dict[str, Any]:
        if "rank" not in group:
            return dict(group)
        empty = {p: nn.Parameter(torch.empty(0, device=p.device)) for p in group["params"]}
        self.stand_ins |= empty
        return {"params": list(empty.values()), "lr": 1.0, "weight_decay": 0.0}

    def _stand_for(self, weights: list[Any]) -> list[Any]:
        return [self.stand_ins.get(weight, weight) for weight in weights]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Project, let Adam step on the projections, and move the weights by what that says."""
        assert closure is None
        self._pass_on()
        (adam,) = self.inner
        moved = []
        for group, inner in zip(self.param_groups, adam.param_groups, strict=True):
            for weight in group["params"]:
                if "rank" in group and weight.grad is not None:
                    inner["lr"] = 1.0  # the stand-in then holds the normalised step itself
                    self._project(weight, group)
                    moved.append((weight, group))
        adam.step()
        for weight, group in moved:
            self._move(weight, group)
            stand_in = self.stand_ins[weight]
            stand_in.grad = None
            stand_in.data = torch.empty(0, device=weight.device)

    def _project(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        gradient = weight.grad
        assert gradient is not None
        state = self.state[weight]
        done = state.setdefault("step", 0)
        if done % group["refresh_every"] == 0:
            seed = (self.place[weight] << 32) + done // group["refresh_every"]
            state["basis"] = _basis(gradient, group["rank"], None if group["scaling"] == "project" else seed)
        state["step"] = done + 1
        projected = gradient @ state["basis"] if _is_tall(gradient) else state["basis"].T @ gradient
        stand_in = self.stand_ins[weight]
        stand_in.data = torch.zeros_like(projected)
        stand_in.grad = projected

    def _move(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        stand_in, state = self.stand_ins[weight], self.state[weight]
        assert stand_in.grad is not None
        assert weight.grad is not None
        step = -stand_in.data
        if group["scaling"] == "project":
            full = step @ state["basis"].T if _is_tall(weight) else state["basis"] @ step
            weight.add_(full, alpha=-group["lr"] * group["scale"])
        else:
            # the limit counts norms before Adam's correction for the first steps, as the paper's code does
            first, second = (1 - beta ** state["step"] for beta in self.betas)
            correction = math.sqrt(second) / first
            side = (1 if _is_tall(weight) else 0) if group["scaling"] == "channel" else None
            full = weight.grad * (_norm(step, side) / correction / (_norm(stand_in.grad, side) + _TINY))
            norm = full.norm()
            if "norm" in state:
                limit = (norm / (state["norm"] + _TINY)).clamp(min=_GROWTH) / _GROWTH
                full, norm = full / limit, norm / limit
            state["norm"] = norm
            weight.add_(full, alpha=-group["lr"] * correction * math.sqrt(group["scale"]))
        weight.mul_(1 - group["lr"] * group["weight_decay"])


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] >= matrix.shape[1]


def _norm(matrix: Tensor, side: int | None) -> Tensor:
    norm: Tensor = matrix.norm() if side is None else matrix.norm(dim=side, keepdim=True)
    return norm


def _basis(gradient: Tensor, rank: int, seed: int | None) -> Tensor:
    """Return ``[shorter side, rank]``: leading singular vectors, or random ones of *seed*, the same on every device."""
    if seed is not None:
        random = torch.randn(
            (min(gradient.shape), rank), generator=torch.Generator().manual_seed(seed), dtype=torch.float32
        )
        return (random / math.sqrt(rank)).to(gradient.device, gradient.dtype)
    left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    leading: Tensor = right[:rank].T if _is_tall(gradient) else left[:, :rank]
    return leading.to(gradient.dtype).contiguous()
