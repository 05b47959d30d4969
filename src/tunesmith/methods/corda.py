"""CorDA: LoRA that begins with the directions of the weights that the data uses most (arXiv:2406.05223)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.core.registry import is_missing
from tunesmith.methods._residual import AbstractResidualLoRA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from transformers import PreTrainedModel

    from tunesmith.methods._base import Start


class CorDA(AbstractResidualLoRA):
    """Train the weights' directions that matter for this data (or those that do not); saves twice its rank."""

    mode: Literal["learn", "keep"] = "learn"
    """``learn``: train what the data uses most; ``keep``: what it uses least, to keep what the model knows of it."""

    samples: Annotated[int, Field(ge=1)] = 256
    """Training examples, from the first, that the directions are measured on."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse what no adapter can be put on, and a missing package."""
        yield from super().check(recipe)
        if is_missing("attr"):
            problem = "corda needs the package attrs, which peft imports and does not ask for"
            yield Problem("method", problem, hint="pip install attrs")

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Add the adapters; what they begin with is known when the data has been looked at."""
        return super(AbstractResidualLoRA, self).apply(model)

    def begin(self, model: nn.Module, start: Start) -> None:
        """Measure the covariance of each layer's inputs, and move the directions it singles out."""
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda

        inner: Any = cast("Any", model).base_model.model
        config = copy.deepcopy(cast("Any", model).peft_config["default"])
        config.corda_config = CordaConfig(corda_method="ipm" if self.mode == "learn" else "kpm", verbose=False)
        names = [name for name, module in inner.named_modules() if name.endswith(".base_layer")]
        config.target_modules = set(names)

        def run() -> None:
            for index in range(min(self.samples, start.examples)):
                start.run_example(index)

        preprocess_corda(inner, config, run_model=run)
        self.move_all(model)
        model.train()

    def move(self, layer: Any) -> None:
        """Move the directions that peft found."""
        layer.corda_init("default", "corda_ipm")
