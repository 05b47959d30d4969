"""What methods share whose adapters peft makes, loads and merges."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar, cast

from tunesmith.core.errors import Problem, UserError
from tunesmith.methods._base import Method

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel


class AbstractPeft(Method):
    """Train small adapters beside frozen weights."""

    learning_rate: ClassVar[float] = 2e-4
    adds_adapter: ClassVar[bool] = True

    def peft_config(self) -> Any:
        """Return peft's configuration of this method."""
        raise NotImplementedError

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse new random weights: an adapter is saved alone, so that what it belongs to would be lost."""
        if recipe.model.scratch is not None:
            problem = f"{self.type_name()} adds to a model that stays, but model.scratch makes one that is not kept"
            yield Problem("method", problem, hint="use method: full")

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Wrap *model* with peft; raise :class:`UserError` where the targets fit no module."""
        from peft import get_peft_model

        try:
            return cast("nn.Module", get_peft_model(model, self.peft_config()))
        except ValueError as error:
            raise UserError(f"method.targets: {error}") from None

    def base_model(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", cast("Any", model).get_base_model())

    def save(self, model: nn.Module, folder: Path) -> None:
        with warnings.catch_warnings():
            # peft looks for a resized vocabulary where the base should be; a base that is itself an adapter has none
            warnings.filterwarnings("ignore", message="Could not find a config file")
            cast("Any", model).save_pretrained(folder)
