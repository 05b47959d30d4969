"""Prefix tuning: keys and values of virtual tokens in every layer (arXiv:2101.00190)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.core.errors import Problem, UserError
from tunesmith.methods._virtual import AbstractVirtualTokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel


class PrefixTuning(AbstractVirtualTokens):
    """Train the keys and values of virtual tokens in every layer: more to learn with than prompt tuning has."""

    peft_config: ClassVar[str] = "PrefixTuningConfig"

    network_size: Annotated[int, Field(ge=0)] = 0
    """Width of a network that writes them while training; 0 to train them directly."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse gradient checkpointing, which has no room for keys that were there before."""
        yield from super().check(recipe)
        if recipe.engine.gradient_checkpointing:
            problem = "prefix_tuning does not work with it: its keys and values stand in the cache"
            yield Problem("engine.gradient_checkpointing", problem, hint="use method: prompt_tuning, or false")

    def check_adapter(self, model: PreTrainedModel, config: Any) -> None:
        """Refuse what a network wrote: only its result is saved."""
        super().check_adapter(model, config)
        if config.prefix_projection:
            raise UserError("model.adapter: prefix_tuning saves what its network wrote, and not the network")

    def options(self) -> dict[str, Any]:
        """Return the network's settings as peft calls them."""
        network = {"prefix_projection": True, "encoder_hidden_size": self.network_size} if self.network_size else {}
        return {**super().options(), **network}
