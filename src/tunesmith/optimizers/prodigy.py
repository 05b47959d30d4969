"""Prodigy: Adam that finds its own rate (arXiv:2306.06101), by pytorch_optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.optimizers._adam import AbstractAdam

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    import torch
    from torch import nn


class Prodigy(AbstractAdam):
    """For when no rate is known: ``schedule.learning_rate`` is a multiple of what it finds, usually 1."""

    state_bytes_per_weight: ClassVar[float] = 16.0
    step_floats: ClassVar[float] = 1.2
    package: ClassVar[str] = "pytorch_optimizer"
    needs_all_weights: ClassVar[str] = "prodigy finds one rate from all weights"

    first_rate: Annotated[float, Field(gt=0)] = 1e-6
    """The rate it begins with, and from which it grows."""

    growth: Annotated[float, Field(gt=0)] = 1.0
    """Multiple of the estimate: above 1 bolder, below 1 more careful."""

    def usual_rate(self, method_rate: float) -> float:  # noqa: ARG002
        """Return 1: the estimate as it is."""
        return 1.0

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse rates of one's own: Prodigy estimates one for all weights."""
        yield from super().check(recipe)
        ratio = recipe.method.optimizer_settings().get("lora_plus_ratio", self.lora_plus_ratio)
        for name, given in (("learning_rates", self.learning_rates), ("lora_plus_ratio", ratio != 1)):
            if given:
                yield Problem(f"optimizer.{name}", "prodigy finds one rate for all weights", hint="use adamw")

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return pytorch_optimizer's Prodigy."""
        from pytorch_optimizer import Prodigy as LibraryProdigy

        return LibraryProdigy(
            self.parameter_groups(model, learning_rate),
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            d0=self.first_rate,
            d_coef=self.growth,
            bias_correction=True,
            safeguard_warmup=True,
        )
