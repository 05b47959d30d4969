"""Settle a recipe: everything that is known before a weight is loaded.  What ``plan`` shows is what ``train`` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.settings import process_settings
from tunesmith.engine.pack import build_packs
from tunesmith.generation.constrained import check_constraint
from tunesmith.models.quantized_base import check_loaded_config, quantization_in, settled_quantization
from tunesmith.models.rope import is_dynamic
from tunesmith.models.vocabulary import check_vocabulary
from tunesmith.run.before_training import check_tokenizers, reference_notices
from tunesmith.run.compiling import compiled_mark, measure_work, settle_compiling
from tunesmith.run.defaults import Facts, seeds_of_failure
from tunesmith.run.estimate import estimate, fit_tokens
from tunesmith.run.machine import Machine
from tunesmith.run.outline import NoEstimateError, Outline
from tunesmith.run.plan import Plan, make_plan
from tunesmith.run.prepare import open_data, prepare
from tunesmith.run.speed import Job
from tunesmith.run.start import load_start

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.prepared import Prepared
    from tunesmith.run.speed import SpeedOf


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
    speed: SpeedOf | None = None,
    shape_will_do: bool = False,
) -> Settled:
    """Settle *recipe* for this machine, or for *machine*; raise :class:`UserError` for all that cannot work.

    With *speed* the cost is counted exactly, and how long it takes follows; without, a bound on the memory will do
    where it fits plainly.  If *shape_will_do*, a well-known model need not be there.
    """
    machine = machine or Machine.probe(recipe.engine.device, process_settings().world_size)
    data = open_data(recipe)
    start = load_start(recipe, data, shape_will_do=shape_will_do)
    config = start.config
    problems = list(check_loaded_config(recipe.model, recipe, config, machine.device))
    problems += () if start.notice else check_tokenizers(recipe, start.tokenizer)
    problems += check_constraint(recipe.evaluation.generation, start.tokenizer, "evaluation.generation.constraint")
    if problems:
        raise RecipeError(problems)
    outline = make_outline(recipe, config, machine)
    prepared = start.tell(prepare(recipe, data, start.tokenizer, listener, own_files=not start.notice))
    return settle_prepared(recipe, machine, prepared, config, outline, speed)


def settle_prepared(
    recipe: Recipe,
    machine: Machine,
    prepared: Prepared,
    config: PreTrainedConfig,
    outline: Outline | str,
    speed: SpeedOf | None,
) -> Settled:
    """Settle *recipe*, whose data are made into examples already; *outline* is its model, or why there is none."""
    parameters = outline.counts[0] if isinstance(outline, Outline) else None
    validated = prepared.validation is not None
    plan = make_plan(recipe, machine, len(prepared.train.examples), validated=validated, parameters=parameters)
    notices = (*plan.notices, *prepared.notices, *recipe.method.notices(config), *_check_fit(config, prepared))
    held_out = len(prepared.validation.examples) if prepared.validation is not None else 0
    notices += tuple(reference_notices(plan, held_out))
    why = dict(plan.why)
    if prepared.remade_because:
        why["examples"] += f"; made anew by every run, because {prepared.remade_because}"
    plan = replace(plan, why=why, notices=notices)
    plan = _with_quantization(plan, config, outline)
    if isinstance(outline, Outline):
        plan = _with_cost(plan, prepared, machine, outline, speed)
    else:
        unknown = dict.fromkeys(("parameters", "trained_parameters", "memory", "seconds"), f"not known: {outline}")
        plan = replace(plan, why={**plan.why, **unknown})
    plan = _with_compiling(plan, prepared, machine, config)
    facts = Facts(
        examples=plan.examples,
        trained_tokens=prepared.train.counts["trained_tokens"],
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        parameters=plan.parameters,
        trained=plan.trained_parameters,
    )
    plan = replace(plan, notices=(*plan.notices, *seeds_of_failure(recipe, facts)))
    return Settled(plan, machine, prepared, config)


def _with_quantization(plan: Plan, config: PreTrainedConfig, outline: Outline | str) -> Plan:
    """Return *plan* with how the base is quantized, and how much of it."""
    found = settled_quantization(plan.recipe.model, config)
    if found is None:
        own = quantization_in(config)  # of a kind that is not ours
        unknown = {"quantization": "as the model's files are; its memory is counted as if it were not"}
        return plan if own is None else replace(plan, quantization=own[0], why={**plan.why, **unknown})
    why = "the recipe says so" if plan.recipe.model.quantization is not None else "as the model's files are"
    if isinstance(outline, Outline) and outline.packed:
        rest = plan.precision if plan.recipe.method.adds_adapter else plan.recipe.engine.weights
        share, bits = outline.packed_share
        why += f"; {share:.0%} of the weights, at {bits:.2f} bits each; head, embeddings and norms stay {rest}"
    return replace(plan, quantization=found.described(), why={**plan.why, "quantization": why})


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
    speed: SpeedOf | None,
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
        reached = speed(Job(machine, plan, outline, prepared, found))
        seconds = reached.seconds(plan.steps)
        why["seconds"] = f"{reached.why}; may be off by a factor of {reached.factor:g}"
    notices = plan.notices
    if memory.verdict == "close":
        notices += (f"memory: {memory.why(machine)}; it may run out",)
    return replace(plan, memory=memory, seconds=seconds, why=why, notices=notices)


def _check_fit(config: PreTrainedConfig, prepared: Prepared) -> list[str]:
    """Raise where tokenizer and model do not belong together; return notices of what is unusual."""
    text = config.get_text_config()
    both = [made for made in (prepared.train, prepared.validation) if made is not None]
    highest = max(made.examples.highest_token for made in both)
    notices = check_vocabulary(prepared.template.tokenizer, int(text.vocab_size), highest)
    longest, context = max(made.counts["longest"] for made in both), getattr(text, "max_position_embeddings", None)
    if not context or longest <= context:
        return notices
    if is_dynamic(config):
        raise UserError(
            f"model.rope_scaling: dynamic squeezes a pass by the longest sequence seen so far, so what one of over "
            f"{context} tokens teaches would depend on what ran before it (there are up to {longest}); use yarn, or "
            f"train on shorter ones, data.max_tokens: {context}, and let dynamic serve longer ones"
        )
    return [
        *notices,
        f"sequences of up to {longest} tokens, but the model was made for {context}: lower data.max_tokens, or set "
        "model.rope_scaling",
    ]
