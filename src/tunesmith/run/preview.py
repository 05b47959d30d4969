"""The plan as a user sees it before training: what is settled, what the data gives, what will be noticed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.settings import process_settings
from tunesmith.models.load import load_config, load_tokenizer
from tunesmith.run.machine import Machine
from tunesmith.run.plan import Plan, make_plan
from tunesmith.run.prepare import prepare, read_data

if TYPE_CHECKING:
    from tunesmith.recipe.schema import Recipe


@dataclass(frozen=True)
class Preview:
    """A plan with the data's counts."""

    plan: Plan
    machine: Machine
    data: dict[str, Any]
    notices: list[str]

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {**self.plan.as_data(), "machine": vars(self.machine), "data": self.data, "notices": self.notices}


def preview(recipe: Recipe) -> Preview:
    """Settle *recipe* as training would, without loading a weight."""
    machine = Machine.probe(recipe.engine.device, process_settings().world_size)
    data = read_data(recipe)
    tokenizer = load_tokenizer(recipe.model, data.texts)
    load_config(recipe.model, tokenizer)
    prepared = prepare(recipe, data, tokenizer)
    plan = make_plan(recipe, machine, len(prepared.train.examples), validated=prepared.validation is not None)
    return Preview(plan, machine, prepared.as_data(), [*plan.notices, *prepared.notices])
