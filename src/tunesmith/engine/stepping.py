"""Step weights one at a time: in the backward pass, and in bfloat16 with stochastic rounding."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class WeightSteps:
    """Steps each weight with a torch optimizer as if it were the only one; the optimizer and its state stay its own.

    A weight in bfloat16 is stepped as a float32 copy, which lives as long as its step, and is rounded up or down by
    chance, so that updates smaller than its spacing are kept on average (arXiv:2010.06192).  The optimizer's states are
    those of float32 weights.  The noise is a function of seed, step and weight: a run that is resumed, or steps
    in another order, rounds alike.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], seed: int, *, in_backward: bool
    ) -> None:
        """Step *weights*, which *optimizer* was built over, by name; *in_backward* for :meth:`last_pass` to work."""
        self.optimizer, self.seed = optimizer, seed
        self._order = {weight: index for index, weight in enumerate(weights.values())}
        self._group = {w: index for index, group in enumerate(optimizer.param_groups) for w in group["params"]}
        self._norms: dict[Tensor, Tensor] = {}
        self._step: int | None = None
        self._settings: tuple[int, list[dict[str, Any]]] | None = None
        for weight in self._order if in_backward else ():
            weight.register_post_accumulate_grad_hook(self._on_gradient)

    @property
    def started(self) -> bool:
        """Whether a weight was stepped in the backward pass of the step that is not finished."""
        return bool(self._norms)

    @contextmanager
    def last_pass(self, step: int) -> Iterator[None]:
        """Step each weight, and free its gradient, as soon as that is complete in the backward pass inside."""
        self._step = step
        try:
            yield
        finally:
            self._step = None

    def step(self, step: int) -> None:
        """Step all weights that have a gradient, and free it."""
        for weight in self._order:
            if weight.grad is not None:
                self._step_one(weight, step)

    def finish(self, step: int) -> float:
        """Step the weights that the last pass did not reach; return the norm of all gradients of *step*."""
        for weight in self._order:
            if weight.grad is not None:
                self._norms[weight] = torch.linalg.vector_norm(weight.grad)
                self._step_one(weight, step)
        norms = [self._norms[weight] for weight in self._order if weight in self._norms]
        self._norms.clear()
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the optimizer its state back; torch alone would cast it to the type of the weights."""
        own = {weight: weight.data for weight in self._order if weight.dtype == torch.bfloat16}
        for weight in own:
            weight.data = torch.empty(0, dtype=torch.float32, device=weight.device)
        self.optimizer.load_state_dict(state)
        for weight, data in own.items():
            weight.data = data
        self._group = {w: i for i, group in enumerate(self.optimizer.param_groups) for w in group["params"]}
        self._settings = None

    def _on_gradient(self, weight: Tensor) -> None:
        if self._step is None:
            return
        assert weight.grad is not None
        self._norms[weight] = torch.linalg.vector_norm(weight.grad)
        self._step_one(weight, self._step)

    @torch.no_grad()
    def _step_one(self, weight: Tensor, step: int) -> None:
        short, gradient = weight.data, weight.grad
        assert gradient is not None
        if weight.dtype != torch.bfloat16:
            self._step_alone(weight, step)
            weight.grad = None
            return
        weight.grad = None  # its type must be the weight's at every moment
        weight.data = short.float()
        weight.grad = gradient.float()
        self._step_alone(weight, step)
        long = weight.data
        weight.grad = None
        weight.data = short
        weight.copy_(round_by_chance(long, (self.seed, step, self._order[weight])))

    def _step_alone(self, weight: Tensor, step: int) -> None:
        groups = self.optimizer.param_groups
        everything = [group["params"] for group in groups]
        if self._settings is None or self._settings[0] != step:
            self._settings = (step, [{k: v for k, v in group.items() if k != "params"} for group in groups])
        for index, (group, settings) in enumerate(zip(groups, self._settings[1], strict=True)):
            # some optimizers count steps in their groups: every weight must find the count that the first one found
            group.clear()
            group.update(params=[weight] if index == self._group[weight] else [], **settings)
        try:
            self.optimizer.step()
        finally:
            for group, weights in zip(groups, everything, strict=True):
                group["params"] = weights


def round_by_chance(values: Tensor, seed: tuple[int, int, int]) -> Tensor:
    """Return float32 *values* in bfloat16, rounded away from zero with the probability of what is cut off."""
    generator = torch.Generator(values.device).manual_seed(_mixed(seed))
    noise = torch.randint(2**16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    # bfloat16 is the upper half of float32: noise below its last bit carries over as often as the rest is large
    bits = noise.add_(values.view(torch.int32)).bitwise_and_(-(2**16))
    return bits.view(torch.float32).bfloat16()


def _mixed(numbers: tuple[int, ...]) -> int:
    """Return one seed for several numbers, the same on every machine."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % 2**63
    return mixed
