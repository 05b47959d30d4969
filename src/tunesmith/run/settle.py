"""Settle a recipe: everything that is known before a weight is loaded.  What ``plan`` shows is what ``train`` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.settings import process_settings
from tunesmith.engine.pack import build_packs
from tunesmith.models.load import load_config, load_tokenizer
from tunesmith.run.compiling import compiled_mark, measure_work, settle_compiling
from tunesmith.run.defaults import Facts, seeds_of_failure
from tunesmith.run.estimate import NoEstimateError, Outline, estimate, fit_tokens
from tunesmith.run.machine import Machine
from tunesmith.run.plan import Plan, make_plan
from tunesmith.run.prepare import open_data, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedConfig

    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.prepared import Prepared
    from tunesmith.run.speed import Speed


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


def settle(
    recipe: Recipe,
    listener: Listener = ignore,
    *,
    machine: Machine | None = None,
    speed: Callable[[Machine, Plan, Outline], Speed] | None = None,
) -> Settled:
    """Settle *recipe* for this machine, or for *machine*; raise :class:`UserError` for all that cannot work.

    With *speed* the cost is counted exactly, and how long it takes follows; without, a bound on the memory will do
    where it fits plainly.
    """
    machine = machine or Machine.probe(recipe.engine.device, process_settings().world_size)
    data = open_data(recipe)
    tokenizer = load_tokenizer(recipe.model, data.texts)
    config = load_config(recipe.model, tokenizer)
    outline = make_outline(recipe, config, machine)
    prepared = prepare(recipe, data, tokenizer, listener)
    return settle_prepared(recipe, machine, prepared, config, outline, speed)


def settle_prepared(
    recipe: Recipe,
    machine: Machine,
    prepared: Prepared,
    config: PreTrainedConfig,
    outline: Outline | str,
    speed: Callable[[Machine, Plan, Outline], Speed] | None,
) -> Settled:
    """Settle *recipe*, whose data are made into examples already; *outline* is its model, or why there is none."""
    known = isinstance(outline, Outline)
    parameters = outline.counts[0] if isinstance(outline, Outline) else None
    validated = prepared.validation is not None
    plan = make_plan(recipe, machine, len(prepared.train.examples), validated=validated, parameters=parameters)
    notices = (*plan.notices, *prepared.notices, *recipe.method.notices(config), *_check_fit(recipe, config, prepared))
    why = dict(plan.why)
    if prepared.remade_because:
        why["examples"] += f"; made anew by every run, because {prepared.remade_because}"
    plan = replace(plan, why=why, notices=notices)
    plan = _with_cost(plan, prepared, machine, outline, speed) if isinstance(outline, Outline) else plan
    if not known:
        unknown = dict.fromkeys(("parameters", "trained_parameters", "memory", "seconds"), f"not known: {outline}")
        plan = replace(plan, why={**plan.why, **unknown})
    plan = _with_compiling(plan, prepared, machine, config)
    counts = prepared.train.counts
    facts = Facts(
        examples=plan.examples,
        trained_tokens=counts["trained_tokens"],
        cut=counts["truncated"],
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        parameters=plan.parameters,
        trained=plan.trained_parameters,
    )
    plan = replace(plan, notices=(*plan.notices, *seeds_of_failure(recipe, facts)))
    return Settled(plan, machine, prepared, config)


def _with_compiling(plan: Plan, prepared: Prepared, machine: Machine, config: PreTrainedConfig) -> Plan:
    """Return *plan* with whether the blocks are compiled."""
    examples = prepared.train.examples
    batch = [examples[index] for index in range(min(plan.recipe.schedule.batch_size, len(examples)))]
    tokens = sum(len(pack.tokens) for pack in build_packs(batch, plan.layout, plan.tokens_per_pass))
    work, mark = measure_work(plan, config, tokens), compiled_mark(plan, config)
    settled = settle_compiling(plan.recipe.engine.compile, plan, machine, work, mark)
    why = {**plan.why, "compile": settled.why} if settled.why else plan.why
    notices = (*plan.notices, settled.notice) if settled.notice else plan.notices
    return replace(plan, compile=settled.compile, why=why, notices=notices)


def make_outline(recipe: Recipe, config: PreTrainedConfig, machine: Machine) -> Outline | str:
    """Return the model of *recipe* without weights, or why there is none; raise where the method does not fit it."""
    if not machine.has_torch:
        return "torch is not installed here"
    try:
        return Outline(recipe, config)
    except NoEstimateError as error:
        return str(error)


def _with_cost(
    plan: Plan,
    prepared: Prepared,
    machine: Machine,
    outline: Outline,
    speed: Callable[[Machine, Plan, Outline], Speed] | None,
) -> Plan:
    """Return *plan* with what it needs, and with as many tokens a pass as fit."""
    parameters, trained = outline.counts
    why = {
        **plan.why,
        "parameters": "counted on the model without weights",
        "trained_parameters": f"{trained / max(1, parameters):.2%} of all, by {plan.recipe.method.type_name()}",
    }
    plan = replace(plan, parameters=parameters, trained_parameters=trained, why=why)
    try:
        plan, found = fit_tokens(outline, plan, prepared, machine)
        if speed is not None and found.work is None:
            found = estimate(outline, plan, prepared, machine, exact=True)
    except NoEstimateError as error:
        unknown = dict.fromkeys(("memory", "seconds"), f"not known: {error}")
        return replace(plan, why={**plan.why, **unknown})
    memory, seconds = found.memory, None
    why = {**plan.why, "memory": memory.why(machine), "seconds": "`tunesmith plan` says"}
    if speed is not None and found.work is not None:
        reached = speed(machine, plan, outline)
        seconds = reached.seconds(found.work, plan.steps)
        why["seconds"] = f"{reached.why}; may be off by a factor of {reached.factor:g}"
    notices = plan.notices
    if memory.verdict == "close":
        notices += (f"memory: {memory.why(machine)}; it may run out",)
    return replace(plan, memory=memory, seconds=seconds, why=why, notices=notices)


def _check_fit(recipe: Recipe, config: PreTrainedConfig, prepared: Prepared) -> list[str]:
    """Raise where tokenizer and model do not belong together; return notices of what is unusual."""
    text = config.get_text_config()
    tokens, rows = len(prepared.template.tokenizer), int(text.vocab_size)
    highest = prepared.train.examples.highest_token
    if highest >= rows:
        raise UserError(
            f"model: its embedding has {rows} rows, but the tokenizer ({tokens} tokens) gives token id {highest}"
        )
    longest, context = prepared.train.counts["longest"], getattr(text, "max_position_embeddings", None)
    scaling = recipe.model.rope_scaling
    if scaling is not None and scaling.type == "dynamic" and context and longest > context:
        context = round(context * scaling.factor)
        notices = [
            "model.rope_scaling: dynamic squeezes a whole pass by its longest sequence, in training as in serving, so "
            "that results depend on what else is in a pass; yarn does not"
        ]
    else:
        notices = []
    if context and longest > context:
        notices.append(
            f"sequences of up to {longest} tokens, but the model was made for {context}: lower data.max_tokens, or set "
            "model.rope_scaling"
        )
    return notices
