"""What methods share whose adapters peft makes, loads and merges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from tunesmith.core.errors import Problem, UserError
from tunesmith.methods._base import Method
from tunesmith.models.heads import task_type
from tunesmith.models.load import fitting
from tunesmith.models.peft_warnings import quiet_peft

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel


class AbstractPeft(Method):
    """Train small adapters beside frozen weights."""

    learning_rate: ClassVar[float] = 2e-4
    adds_adapter: ClassVar[bool] = True

    peft_config: ClassVar[str]
    """Name of peft's class of configurations, such as ``LoraConfig``."""

    def options(self) -> dict[str, Any]:
        """Return this method's own settings as peft calls them."""
        raise NotImplementedError

    def choose(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what of peft's configuration depends on *model*: the modules to adapt, sizes."""
        raise NotImplementedError

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse new random weights: an adapter is saved alone, so that what it belongs to would be lost."""
        if recipe.model.scratch is not None:
            problem = f"{self.type_name()} adds to a model that stays, but model.scratch makes one that is not kept"
            yield Problem("method", problem, hint="use method: full")

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Wrap *model* with peft; raise :class:`UserError` for what does not fit its modules."""
        import peft

        config = getattr(peft, self.peft_config, None)
        if config is None:
            raise UserError(f"method: peft {peft.__version__} has no {self.peft_config}; pip install --upgrade peft")
        chosen = {**self.choose(model), **self.options()}
        with quiet_peft():
            try:
                return cast("nn.Module", peft.get_peft_model(model, config(task_type=task_type(model), **chosen)))
            except (ValueError, TypeError, NotImplementedError) as error:
                raise UserError(f"method: {self.type_name()} does not fit this model: {error}") from None

    def go_on(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        """Load *adapter* for training; raise :class:`UserError` where the settings say something else than it."""
        import peft

        if self.cannot_continue:
            raise UserError(f"model.adapter: {self.cannot_continue}")
        config: Any = peft.PeftConfig.from_pretrained(str(adapter))
        self.check_adapter(model, config)
        config.task_type, config.inference_mode, config.base_model_name_or_path = task_type(model), False, None
        model.requires_grad_(False)
        with quiet_peft():
            try:
                wrapped: Any = peft.get_peft_model(model, config)
            except (ValueError, TypeError, NotImplementedError) as error:
                raise UserError(f"model.adapter: {adapter} does not fit its base: {error}") from None
        if model.device.type != "meta":
            with fitting(adapter), quiet_peft():
                peft.set_peft_model_state_dict(wrapped, peft.load_peft_weights(str(adapter), device="cpu"))
        return cast("nn.Module", wrapped)

    def check_adapter(self, model: PreTrainedModel, config: Any) -> None:  # noqa: ARG002 - for those that override it
        """Raise :class:`UserError` where a setting that is not left as usual differs from a saved adapter's *config*.

        Dropout is no part of an adapter: the recipe's goes into *config*.
        """
        found = str(config.peft_type.value).lower()
        if type(config).__name__ != self.peft_config:
            raise UserError(f"method: the adapter is of the kind {found}, which {self.type_name()} cannot go on with")
        usual = type(self)()
        plain = usual.options()
        for flag in ("use_dora", "use_rslora"):
            if bool(getattr(config, flag, False)) != bool(self.options().get(flag)):
                kind = flag.removeprefix("use_") if getattr(config, flag) else "lora"
                raise UserError(f"method: the adapter is of the kind {kind}, not {self.type_name()}; use {kind}")
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value == getattr(usual, name):
                continue
            changed = usual.model_copy(update={name: value}).options()
            keys = [key for key in changed if changed[key] != plain.get(key)] or [name]
            for key in keys:
                if key.endswith("dropout"):
                    setattr(config, key, changed[key])
                elif hasattr(config, key) and (getattr(config, key) or None) != (changed.get(key, value) or None):
                    raise UserError(f"method.{name}: {value}, but the adapter has {getattr(config, key)}; leave it out")

    def base_model(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", cast("Any", model).get_base_model())

    def save(self, model: nn.Module, folder: Path) -> None:
        with quiet_peft():
            # what stays as it is in the base is not saved again, whatever its vocabulary
            cast("Any", model).save_pretrained(folder, save_embedding_layers=False)
