"""The contract of an optimizer."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import Spec, is_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch
    from torch import nn


class Optimizer(Spec):
    """Builds a torch optimizer over the parameters that train."""

    state_bytes_per_weight: ClassVar[float] = 8.0
    """Bytes of state that are kept for each weight that trains."""

    step_floats: ClassVar[float] = 0.0
    """Float32 numbers that a step takes for a moment for each weight of the matrix at hand, beside its gradient."""

    package: ClassVar[str] = ""
    """What it needs beyond Tunesmith's own requirements, as it is imported; nothing where empty."""

    only_whole_weights: ClassVar[str] = ""
    """Why it makes no sense beside adapters; it works with every method where empty."""

    needs_all_weights: ClassVar[str] = ""
    """Why it cannot step one weight without the others; it can where empty."""

    averages_weights: ClassVar[bool] = False
    """Whether it judges and saves averages of the weights that it trains."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Pull of the weights towards zero; vectors (norms, biases) are left out."""

    no_weight_decay: list[str] = []
    """Regular expressions; weights whose full name contains a match are not pulled either, such as ``embed_tokens``."""

    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Multiples of the rate: ``{embed_tokens: 0.1}``. The first regular expression that fits a weight's name counts."""

    lora_plus_ratio: Annotated[float, Field(gt=0)] = 1.0
    """LoRA+ (arXiv:2402.12354): how many times faster LoRA's B matrices learn than A; the paper's choice is 16."""

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return the optimizer for the parameters of *model* that require a gradient.

        Everything that its next step depends on is in its ``state_dict``, as tensors and plain values.
        """
        raise NotImplementedError

    def state_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        """Return the bytes of state that are kept for weights of these *shapes*, in the model's order.

        Where it depends on which weights are which, shapes that repeat are taken to be those of the blocks.
        """
        return self.state_bytes_per_weight * sum(math.prod(shape) for shape in shapes)

    def step_bytes(self, shapes: Sequence[tuple[int, ...]], device: str) -> float:  # noqa: ARG002
        """Return the bytes that a step on *device* takes beside weights, gradients and state: those of the largest."""
        return 4.0 * self.step_floats * max(map(math.prod, shapes), default=0)

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield a package that is missing, a method it makes no sense with, and patterns that are none."""
        if self.package and is_missing(self.package):
            name = self.type_name()
            yield Problem("optimizer", f"{name} needs the package {self.package}", hint=INSTALL_HINT)
        if self.only_whole_weights and recipe.method.adds_adapter:
            yield Problem("optimizer", self.only_whole_weights, hint="use method: full or freeze, or optimizer: adamw")
        if self.lora_plus_ratio != 1 and not recipe.method.adds_adapter:
            yield Problem("optimizer.lora_plus_ratio", "there are no LoRA matrices", hint="use method: lora")
        patterns = {f"no_weight_decay.{index}": pattern for index, pattern in enumerate(self.no_weight_decay)}
        patterns |= {f"learning_rates.{pattern}": pattern for pattern in self.learning_rates}
        for path, pattern in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                yield Problem(f"optimizer.{path}", f"{pattern!r} is not a regular expression: {error}")

    def check_machine(self, device: str) -> Iterable[Problem]:  # noqa: ARG002 - for those that override it
        """Yield why it cannot work on *device* (``cpu``, ``cuda``, ``mps``)."""
        return ()

    def usual_rate(self, method_rate: float) -> float:
        """Return the peak rate where the recipe gives none; *method_rate* is the method's usual one with AdamW."""
        return method_rate

    def parameter_groups(
        self,
        model: nn.Module,
        learning_rate: float,
        options: Callable[[str, nn.Parameter], dict[str, Any]] = lambda name, parameter: {},  # noqa: ARG005
    ) -> list[dict[str, Any]]:
        """Return what trains in groups of one rate, decay and *options*; the group whose rate is logged comes first.

        Raise :class:`UserError` for a pattern or a ratio that fits no weight.
        """
        training = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._check_names([name for name, _ in training])
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in training:
            kept = parameter.ndim < 2 or any(re.search(pattern, name) for pattern in self.no_weight_decay)
            decay = 0.0 if kept else self.weight_decay
            group = {"lr": learning_rate * self._rate_multiple(name), "weight_decay": decay, **options(name, parameter)}
            groups.setdefault(repr(group), {"params": [], **group})["params"].append(parameter)
        return sorted(groups.values(), key=lambda group: group["lr"] != learning_rate)

    def _rate_multiple(self, name: str) -> float:
        found = next((multiple for pattern, multiple in self.learning_rates.items() if re.search(pattern, name)), 1.0)
        return found * (self.lora_plus_ratio if _LORA_B.search(name) else 1.0)

    def _check_names(self, names: list[str]) -> None:
        for setting, patterns in (("no_weight_decay", self.no_weight_decay), ("learning_rates", self.learning_rates)):
            for pattern in patterns:
                if not any(re.search(pattern, name) for name in names):
                    raise UserError(f"optimizer.{setting}: no trained weight's name contains a match of {pattern!r}")
        if self.lora_plus_ratio != 1 and not any(_LORA_B.search(name) for name in names):
            raise UserError("optimizer.lora_plus_ratio: this method has no LoRA B matrices; use method: lora")


INSTALL_HINT = "pip install 'tunesmith[optimizers]'"
_LORA_B = re.compile(r"\blora_(embedding_)?B\b")
