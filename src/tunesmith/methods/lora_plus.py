"""LoRA+: LoRA whose B matrices learn faster than A (arXiv:2402.12354)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.methods._lora import AbstractLoRA

if TYPE_CHECKING:
    from collections.abc import Iterable


class LoRAPlus(AbstractLoRA):
    """Train LoRA with two rates: short for ``lora`` with ``optimizer.lora_plus_ratio``."""

    ratio: Annotated[float, Field(gt=0)] = 16.0
    """How many times faster B learns than A; lower it, or the rate, where training becomes unstable."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse two different ratios."""
        yield from super().check(recipe)
        other = recipe.optimizer.lora_plus_ratio
        if other not in (1.0, self.ratio):
            hint = "leave one of the two out"
            yield Problem("optimizer.lora_plus_ratio", f"{other:g} is not method.ratio = {self.ratio:g}", hint=hint)

    def optimizer_settings(self) -> dict[str, Any]:
        """Return the ratio, which is the optimizer's to apply."""
        return {"lora_plus_ratio": self.ratio}
