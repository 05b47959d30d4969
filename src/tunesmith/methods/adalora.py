"""AdaLoRA: LoRA in the form of a singular value decomposition, whose rank goes where it matters (arXiv:2303.10512)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.methods._layers import AbstractLayers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel

    from tunesmith.methods._base import Start

_SHORTEST = 3  # steps that a run needs for rank to be given out


class AdaLoRA(AbstractLayers):
    """Train more rank than will be kept; directions that matter least are dropped while it trains."""

    peft_config: ClassVar[str] = "AdaLoraConfig"
    cannot_continue: ClassVar[str] = "the ranks of adalora have settled: make it lora with tunesmith adapter convert"

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank that is kept, on average over the adapted modules."""

    initial_rank: Annotated[int, Field(ge=2)] = 12
    """Rank of every module at the start; about 1.5 times ``rank``."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the update."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training."""

    untouched: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps, from the first, that keep the whole rank."""

    settled: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the steps, to the last, that keep the final rank."""

    every: Annotated[int, Field(ge=1)] = 1
    """Steps from one redistribution of the rank to the next."""

    orthogonality: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the penalty that keeps the directions orthogonal."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse ranks and shares that leave nothing to redistribute, and an engine that throws gradients away."""
        yield from super().check(recipe)
        if recipe.engine.optimizer_in_backward:
            problem = "adalora reads the gradients of the whole step, and it keeps none"
            yield Problem("engine.optimizer_in_backward", problem, hint="set it to false, or use method: lora")
        if self.initial_rank <= self.rank:
            yield Problem("method.initial_rank", f"{self.initial_rank} is no more than method.rank = {self.rank}")
        if self.untouched + self.settled >= 1:
            yield Problem("method.settled", "untouched + settled leave no steps to redistribute rank in")

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them; the number of steps is told in :meth:`begin`."""
        return {
            "target_r": self.rank,
            "init_r": self.initial_rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "deltaT": self.every,
            "orth_reg_weight": self.orthogonality,
            "total_step": _SHORTEST,
        }

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Add the adapters; the counts of ranks that peft keeps as weights do not train, on no device."""
        wrapped = super().apply(model)
        for name, parameter in wrapped.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)
        return wrapped

    def begin(self, model: nn.Module, start: Start) -> None:
        """Set the calendar of the redistribution."""
        config = cast("Any", model).peft_config["default"]
        config.total_step = start.steps
        config.tinit = int(self.untouched * start.steps)
        config.tfinal = max(1, int(self.settled * start.steps))

    def before_step(self, model: nn.Module) -> None:
        """Add the gradient of the penalty, which peft computes only where the model computes its own loss.

        Directly and not through a backward pass: what distributes the model counts backward passes.
        """
        import torch

        downs = [p for n, p in model.named_parameters() if p.requires_grad and ".lora_A." in n]
        ups = [p for n, p in model.named_parameters() if p.requires_grad and ".lora_B." in n]
        penalties = []
        for product in [*(a @ a.T for a in downs), *(b.T @ b for b in ups)]:
            penalties.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
        penalty = self.orthogonality * torch.stack(penalties).mean()
        for factor, gradient in zip(downs + ups, torch.autograd.grad(penalty, downs + ups), strict=True):
            if factor.grad is not None:
                factor.grad += gradient

    def after_step(self, model: nn.Module, step: int) -> None:
        """Measure what each direction is worth, and drop the least where it is due."""
        if cast("Any", model).peft_config["default"].total_step >= _SHORTEST:
            cast("Any", model).base_model.update_and_allocate(step)

    def state(self, model: nn.Module) -> dict[str, Any]:
        """Return the averages that the worth of directions is measured by, and what was dropped."""
        worth = cast("Any", model).base_model.rankallocator
        pattern = cast("Any", model).peft_config["default"].rank_pattern
        averages = {name: getattr(worth, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return {"averages": averages, "rank_pattern": pattern}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Go back to them."""
        worth: Any = cast("Any", model).base_model.rankallocator
        for name, tensors in state["averages"].items():
            setattr(worth, name, {key: tensor.to(cast("Any", model).device) for key, tensor in tensors.items()})
        cast("Any", model).peft_config["default"].rank_pattern = state["rank_pattern"]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the directions that are left in these weights, which need not be those of the last step."""
        config = cast("Any", model).peft_config["default"]
        if config.rank_pattern:
            inner = cast("Any", model).base_model.model
            config.rank_pattern = {
                name: (p != 0).flatten().tolist() for name, p in inner.named_parameters() if ".lora_E." in name
            }
        super().save(model, folder)
