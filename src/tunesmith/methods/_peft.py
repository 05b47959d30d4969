"""What methods share whose adapters peft makes, loads and merges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from tunesmith.core.errors import UserError
from tunesmith.methods._base import Method

if TYPE_CHECKING:
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
        cast("Any", model).save_pretrained(folder)
