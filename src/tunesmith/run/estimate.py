"""What a run needs, from the model's configuration alone: parameters, memory and operations, before a weight is loaded.

Parameters are counted on the model without weights (:mod:`tunesmith.run.outline`).  Memory beyond the weights
(:mod:`tunesmith.run.need`) is counted by running the engine without numbers (:mod:`tunesmith.engine.phantom`) over the
largest pack that the data give (:mod:`tunesmith.run.passes`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.engine.pack import ROWS
from tunesmith.run.need import TOO_MUCH, Memory, bound_memory, bytes_text, count_memory, scaled_share, weights_share
from tunesmith.run.outline import Check, NoEstimateError
from tunesmith.run.passes import look_at_passes
from tunesmith.run.sampled import trace_sampling, writes_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tunesmith.engine.pack import Pack
    from tunesmith.run.machine import Machine
    from tunesmith.run.outline import Outline
    from tunesmith.run.passes import Passes
    from tunesmith.run.plan import Plan
    from tunesmith.run.prepared import Prepared

# below this share of the memory a generous bound is proof enough for `train`; `plan` always counts
_PLAINLY = 0.5
# the checks keep more for each token than a pass does, but not so many times as much
_PLAINLY_MORE = 4
# a budget of tokens is chosen so that this share is not exceeded
_COMFORTABLE = 0.85
_BUDGETS = (8192, 4096, 2048, 1024, 512)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run computes."""

    operations: float
    """Floating-point operations of an optimizer step's matrix products, on average."""
    tokens_fed: float
    """Tokens that a step runs through the model, on average: shared prompts once, filling included."""
    passes: int
    """Most passes that a step was seen to take."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan says about a run's cost."""

    parameters: int
    trained: int
    memory: Memory
    work: Work | None
    passes: Passes
    """Those that were seen."""


def estimate(outline: Outline, plan: Plan, prepared: Prepared, machine: Machine, *, exact: bool) -> Estimate:
    """Return what *plan* costs; where not *exact*, a generous bound will do if it fits that plainly."""
    parameters, trained = outline.counts
    passes = _seen_passes(outline, plan, prepared)
    largest = len(passes.largest.tokens)
    if not exact:
        memory = bound_memory(outline, plan, prepared, machine, passes)
        if memory.available and memory.share < _PLAINLY:
            return Estimate(parameters=parameters, trained=trained, memory=memory, work=None, passes=passes)
    with _said_where_it_cannot(outline):
        trace = _trace(outline, plan, passes)
        if writes_here(plan.recipe):
            outline.sampling = outline.sampling or trace_sampling(outline, plan, prepared)
    memory = count_memory(outline, plan, prepared, machine, passes, trace)
    scale = passes.tokens_fed / max(1, largest)
    work = Work(operations=trace.operations * scale, tokens_fed=passes.tokens_fed, passes=passes.most)
    return Estimate(parameters=parameters, trained=trained, memory=memory, work=work, passes=passes)


def _seen_passes(outline: Outline, plan: Plan, prepared: Prepared) -> Passes:
    """Return the passes of *plan*; packs are built once for all variants that make the same."""
    schedule = plan.recipe.schedule
    key = (plan.layout, plan.tokens_per_pass, plan.processes, plan.steps, schedule.batch_size, plan.recipe.seed)
    if key not in outline.passes:
        outline.passes[key] = look_at_passes(plan, prepared)
    found: Passes = outline.passes[key]
    return found


def _trace(outline: Outline, plan: Plan, passes: Passes) -> Any:
    """Return the trace of the largest pass; see to it that :attr:`Outline.check` is known."""
    import torch

    from tunesmith.engine.activations import checkpoint_blocks
    from tunesmith.engine.phantom import PassSettings, trace_pass
    from tunesmith.engine.tracer import Tracer, replace_weights

    recipe = plan.recipe
    checkpointing = recipe.engine.gradient_checkpointing
    if outline.tracer is None:
        outline.tracer = Tracer()
        replace_weights(outline.model, outline.tracer, outline.weight_types(plan))
        if checkpointing:
            checkpoint_blocks(outline.base, selective=checkpointing == "selective")
    settings = PassSettings(
        attention=plan.attention if plan.device == "cpu" else None,
        autocast=None if plan.precision == "float32" else getattr(torch, plan.precision),
        linear=recipe.stage.coefficient(passes.largest) is not None,
        several=passes.follows,
        frees_gradients=recipe.engine.optimizer_in_backward and passes.most == 1,
        keeps_products=checkpointing == "selective",
        plain=plan.device != "cpu",
    )

    def trace(pack: Pack, settings: PassSettings) -> Any:
        key = (settings, pack.width, *(each.tobytes() for each in (pack.tokens, pack.reach, pack.source)))
        if key not in outline.traces:
            outline.traces[key] = trace_pass(outline.model, outline.base, outline.tracer, pack, settings)
        return outline.traces[key]

    largest = trace(passes.largest, settings)
    checked = max(len(passes.compared.tokens), len(passes.checked.tokens))
    if checkpointing or checked * _PLAINLY_MORE > len(passes.largest.tokens):
        outline.check = outline.check or _trace_check(outline, plan, passes, trace, settings)
    return largest


@contextmanager
def _said_where_it_cannot(outline: Outline) -> Iterator[None]:
    """Raise :class:`NoEstimateError` where the model's code cannot run without numbers in here."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    try:
        yield
    except (RuntimeError, NotImplementedError, DataDependentOutputException, DynamicOutputShapeException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NoEstimateError(f"{outline.config.model_type} does not run without numbers ({reason})") from error


def _trace_check(outline: Outline, plan: Plan, passes: Passes, trace: Callable[..., Any], settings: Any) -> Check:
    """Return what engine/check.py holds: it switches checkpoints off, and takes gradients for itself."""
    from tunesmith.engine.dense_decoder import fits

    alone = replace(settings, training=False, several=False, frees_gradients=True, linear=False)
    attention = 0
    if plan.layout not in ROWS and plan.attention[0] != "dense":
        found = trace(passes.compared, replace(alone, reference=True, by_input=True))
        attention = round(max(found.peaks.values()))
    twice = plan.device == "cpu" and plan.layout not in ROWS and not outline.packed and fits(outline.base)
    # an adapter's gradients are next to nothing beside what a longer pass keeps
    if attention and outline.recipe.method.adds_adapter and len(passes.checked.tokens) <= len(passes.compared.tokens):
        return Check(attention, 0, twice)
    found = trace(passes.checked, replace(alone, plain=True))
    return Check(attention, round(max(found.peaks.values())), twice)


def fit_tokens(outline: Outline, plan: Plan, prepared: Prepared, machine: Machine) -> tuple[Plan, Estimate]:
    """Return *plan* with as many tokens a pass as fit comfortably, unless the recipe says how many; and its cost."""
    found = estimate(outline, plan, prepared, machine, exact=False)
    if plan.recipe.engine.tokens_per_pass is not None or not machine.memory_bytes:
        return plan, found
    there = bytes_text(machine.memory_bytes)
    chosen, why = plan, plan.why["tokens_per_pass"]
    # where the weights alone are too many no budget helps, and one that no pass reaches changes nothing
    largest = len(found.passes.largest.tokens) if weights_share(found.memory) <= 1 else 0
    budgets = [tokens for tokens in _BUDGETS if tokens < min(largest, plan.tokens_per_pass)]
    at_first = found.memory
    for tokens in budgets:
        if found.memory.share <= _COMFORTABLE or not found.memory.of_a_pass:
            break
        # what a pass holds grows with its tokens: a budget that is far from enough need not be counted
        if tokens != budgets[-1] and scaled_share(at_first, tokens / largest) > TOO_MUCH * _COMFORTABLE:
            continue
        chosen = replace(plan, tokens_per_pass=tokens)
        found = estimate(outline, chosen, prepared, machine, exact=True)
    if found.memory.share <= _COMFORTABLE:
        why = f"{why}, and it fits" if chosen is plan else f"the most that fits {there} comfortably"
    elif found.memory.of_a_pass:
        why = f"the fewest worth trying: memory is short ({there})"
    else:
        why = f"fewer would not help: {found.memory.moment} needs the most"
    return replace(chosen, why={**chosen.why, "tokens_per_pass": why}), found
