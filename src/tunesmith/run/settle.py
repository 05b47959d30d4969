"""Settle a recipe: everything that is known before a weight is loaded.  What ``plan`` shows is what ``train`` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.settings import process_settings
from tunesmith.models.load import load_config, load_tokenizer
from tunesmith.run.machine import Machine
from tunesmith.run.plan import Plan, make_plan
from tunesmith.run.prepare import open_data, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.prepared import Prepared


@dataclass(frozen=True)
class Settled:
    """A recipe with its plan, its data made into examples, and its model's configuration."""

    plan: Plan
    machine: Machine
    prepared: Prepared
    config: PreTrainedConfig

    def as_data(self) -> dict[str, Any]:
        """Return the plan, the machine and the data's counts as JSON-ready data."""
        return {**self.plan.as_data(), "machine": vars(self.machine), "data": self.prepared.as_data()}


def settle(recipe: Recipe, listener: Listener = ignore) -> Settled:
    """Settle *recipe* for this machine; raise :class:`UserError` for all that cannot work."""
    machine = Machine.probe(recipe.engine.device, process_settings().world_size)
    data = open_data(recipe)
    tokenizer = load_tokenizer(recipe.model, data.texts)
    config = load_config(recipe.model, tokenizer)
    prepared = prepare(recipe, data, tokenizer, listener)
    plan = make_plan(recipe, machine, len(prepared.train.examples), validated=prepared.validation is not None)
    notices = (*plan.notices, *prepared.notices, *_check_fit(config, prepared))
    why = plan.why
    if prepared.remade_because:
        why = {**why, "examples": f"{why['examples']}; made anew by every run, because {prepared.remade_because}"}
    return Settled(Plan(**{**vars(plan), "why": why, "notices": notices}), machine, prepared, config)


def _check_fit(config: PreTrainedConfig, prepared: Prepared) -> list[str]:
    """Raise where tokenizer and model do not belong together; return notices of what is unusual."""
    text = config.get_text_config()
    tokens, rows = len(prepared.template.tokenizer), int(text.vocab_size)
    highest = prepared.train.examples.highest_token
    if highest >= rows:
        raise UserError(
            f"model: its embedding has {rows} rows, but the tokenizer ({tokens} tokens) gives token id {highest}"
        )
    longest, context = prepared.train.counts["longest"], getattr(text, "max_position_embeddings", None)
    if context and longest > context:
        return [f"sequences of up to {longest} tokens, but the model was made for {context}: lower data.max_tokens"]
    return []
