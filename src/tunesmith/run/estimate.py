"""What a run needs, from the model's configuration alone: parameters, memory and operations, before a weight is loaded.

The model is built on the meta device and the recipe's method applied to it: that counts what trains exactly, and
finds targets and ranks that do not fit.  Memory beyond the weights is counted by running the engine without numbers
(:mod:`tunesmith.engine.phantom`) over the largest pack that the data give.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tunesmith.core.errors import UserError
from tunesmith.engine.order import ExampleOrder
from tunesmith.engine.pack import build_packs, split_examples
from tunesmith.run.continuing import apply_method

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tunesmith.engine.pack import Pack
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.machine import Machine
    from tunesmith.run.plan import Plan
    from tunesmith.run.prepared import Prepared

MIB = 2**20
# what a process holds beside its tensors, measured by bench/memory_table.py (docs/memory.md): Python and the libraries
# once imported and used; on CUDA our judgement of the context and its kernels
_LIBRARIES = {"cpu": 330 * MIB, "mps": 700 * MIB, "cuda": 600 * MIB}
# allocators cannot use all of what they hold: share of the tensors' peak
_FRAGMENTS = {"cpu": 0.03, "mps": 0.05, "cuda": 0.04}
# the CPU's library keeps a kernel, with its buffers, for each shape of a bfloat16 product: seen between 200 and 360 MiB
_KERNELS = {"bfloat16": 260 * MIB}
_OVERHEAD = ("fragments", "kernels", "libraries")
# fits plainly below, does not fit above; between the two nobody should promise anything
CLOSE, TOO_MUCH = 0.9, 1.1
# steps whose packs are built to find the largest and the usual one
_SAMPLED_STEPS = 16
# the self-check before the first step takes examples of at most so many tokens (engine/check.py)
_CHECKED_TOKENS, _CHECKED_EXAMPLES = 512, 4
# below this share of the memory a generous bound is proof enough for `train`; `plan` always counts
_PLAINLY = 0.5
# a budget of tokens is chosen so that this share is not exceeded
_COMFORTABLE = 0.85
_BUDGETS = (8192, 4096, 2048, 1024, 512)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a run needs on its device at its worst moment, in bytes."""

    parts: dict[str, int]
    """What it is for; the sum is the total."""
    moment: str
    """When that is."""
    total: int
    available: int
    """Memory of the device; 0 where it is not known."""
    at_most: bool = False
    """Whether activations are a generous bound instead of a count: it fits so plainly that none was made."""

    @property
    def tensors(self) -> int:
        """Bytes of tensors alone, as ``torch.cuda.max_memory_allocated`` would count them."""
        return sum(size for name, size in self.parts.items() if name not in _OVERHEAD)

    @property
    def share(self) -> float:
        """The total as a share of what is there; 0 where that is not known."""
        return self.total / self.available if self.available else 0.0

    @property
    def verdict(self) -> Literal["fits", "close", "too much", "unknown"]:
        """Whether it fits; nobody should promise anything when it is close."""
        if not self.available:
            return "unknown"
        return "too much" if self.share > TOO_MUCH else "close" if self.share > CLOSE else "fits"

    def why(self, machine: Machine) -> str:
        """Say how it compares with what *machine* has."""
        need = f"{'at most ' if self.at_most else ''}{bytes_text(self.total)}"
        if not self.available:
            return f"{need}; how much this machine has is not known"
        word = {"fits": "fits", "close": "close", "too much": "does not fit"}[self.verdict]
        return f"{need} of {bytes_text(self.available)} ({machine.name}): {word}"


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


class NoEstimateError(Exception):
    """The cost cannot be said beforehand; the message says why."""


@dataclass(frozen=True)
class _Passes:
    """The passes of some optimizer steps."""

    largest: Pack
    most: int
    """Passes of a step."""
    tokens_fed: float
    follows: bool
    """Whether the largest one was seen to find gradients of passes before it …"""
    following: int
    """… and else the tokens of the largest that did."""
    checked: Pack
    """What the check before the first step runs forward and backward, whole and without checkpoints."""


class Outline:
    """A recipe's model without weights, the method applied: what counting and tracing need."""

    def __init__(self, recipe: Recipe, config: PreTrainedConfig) -> None:
        """Build it; raise :class:`UserError` where the method does not fit the model.

        Raises :class:`NoEstimateError` where that cannot be known without weights.
        """
        import torch
        from transformers import AutoModelForCausalLM

        self.recipe, self.config = recipe, config
        try:
            with torch.device("meta"):
                base: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=recipe.model.trust_remote_code)
        except (ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"model: transformers cannot build {config.model_type} as a language model: {reason}"
            ) from None
        base.config.use_cache = False
        self.untouched = sum(p.numel() for p in base.parameters())
        state = torch.get_rng_state()
        try:
            with torch.device("meta"):
                self.model: Any = apply_method(recipe, base)
        except (RuntimeError, NotImplementedError) as error:
            raise NoEstimateError(f"{recipe.method.type_name()} needs the weights themselves: {error}") from error
        finally:
            torch.set_rng_state(state)
        self.base: Any = recipe.method.base_model(self.model)

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Parameters in all, and those that train."""
        weights = list(self.model.parameters())
        return sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.requires_grad)

    def weight_types(self, plan: Plan) -> Any:
        """Return a function from a parameter to the type its numbers are kept in, as ``train`` makes them."""
        import torch

        trained = getattr(torch, self.recipe.engine.weights)
        frozen = getattr(torch, plan.precision) if self.recipe.method.adds_adapter else trained
        return lambda parameter: trained if parameter.requires_grad else frozen

    def static(self, plan: Plan) -> dict[str, int]:
        """Return the bytes of weights and optimizer that are there all the time."""
        dtype_of = self.weight_types(plan)
        frozen = trained = 0
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                size = round(parameter.numel() * bytes_per_weight(module, dtype_of(parameter).itemsize))
                trained, frozen = (trained + size, frozen) if parameter.requires_grad else (trained, frozen + size)
        # modules that share a weight (tied embeddings) share its memory
        shared = _tied_bytes(self.model, dtype_of)
        frozen, trained = frozen - shared[0], trained - shared[1]
        shapes = [tuple(p.shape) for p in self.model.parameters() if p.requires_grad]
        return {
            "weights, frozen": frozen,
            "weights that train": trained,
            "optimizer": round(self.recipe.optimizer.state_bytes(shapes)),
        }


def bytes_per_weight(module: Any, size: int) -> float:  # noqa: ARG001 - the place where quantized modules will tell
    """Return the bytes that a weight of *module* takes, of a type of *size* bytes."""
    return float(size)


def _tied_bytes(model: Any, dtype_of: Any) -> tuple[int, int]:
    """Return the bytes of weights that stand in several modules, counted beyond once: frozen, trained."""
    seen: set[int] = set()
    twice = [0, 0]
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                twice[int(parameter.requires_grad)] += parameter.numel() * dtype_of(parameter).itemsize
            seen.add(id(parameter))
    return twice[0], twice[1]


def estimate(outline: Outline, plan: Plan, prepared: Prepared, machine: Machine, *, exact: bool) -> Estimate:
    """Return what *plan* costs; where not *exact*, a generous bound will do if it fits that plainly."""
    parameters, trained = outline.counts
    passes = _look_at_passes(plan, prepared)
    if not exact:
        memory = _at_most(outline, plan, prepared, machine, passes)
        if memory.available and memory.share < _PLAINLY:
            return Estimate(parameters=parameters, trained=trained, memory=memory, work=None)
    trace, check = _trace(outline, plan, passes)
    memory = _memory(outline, plan, prepared, machine, passes, trace, check)
    scale = passes.tokens_fed / max(1, len(passes.largest.tokens))
    work = Work(operations=trace.operations * scale, tokens_fed=passes.tokens_fed, passes=passes.most)
    return Estimate(parameters=parameters, trained=trained, memory=memory, work=work)


def _look_at_passes(plan: Plan, prepared: Prepared) -> _Passes:
    """Build the packs of a few steps, and of the longest example; return the largest and what is usual."""
    examples, recipe = prepared.train.examples, plan.recipe
    order = ExampleOrder(len(examples), recipe.schedule.batch_size, recipe.seed)
    steps = np.unique(np.linspace(0, plan.steps - 1, min(plan.steps, _SAMPLED_STEPS)).astype(int))
    packs: list[tuple[Pack, bool]] = []
    counts, fed = [], []
    for step in steps:
        chosen = [examples[index] for index in order.batch(int(step))]
        parts = [part for part in split_examples(chosen, plan.processes) if part]
        local = [build_packs(part, plan.layout, plan.tokens_per_pass) for part in parts]
        packs += [(pack, at > 0) for each in local for at, pack in enumerate(each)]
        counts.append(max(map(len, local)))
        fed.append(sum(len(pack.tokens) for each in local for pack in each) / len(parts))
    lengths = np.diff(examples.sequence_start[examples.example_start])
    longest = examples[int(lengths.argmax())]
    packs += [(pack, max(counts) > 1) for pack in build_packs([longest], plan.layout, plan.tokens_per_pass)]
    # predictions weigh too: each has a row of the loss
    largest, follows = max(packs, key=lambda each: (len(each[0].tokens), len(each[0].target), each[1]))
    following = max((len(pack.tokens) for pack, later in packs if later), default=0)
    shortest = [examples[int(i)] for i in np.argsort(lengths[:: len(lengths) // 1000 + 1])[:_CHECKED_EXAMPLES]]
    (checked,) = build_packs(shortest, plan.layout, 2**31)
    return _Passes(largest, max(counts), float(np.mean(fed)), follows, following, checked)


def _trace(outline: Outline, plan: Plan, passes: _Passes) -> tuple[Any, Any]:
    """Return the traces of the largest pass and of the check before the first step, if that may need more."""
    import torch
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    from tunesmith.engine.activations import checkpoint_blocks
    from tunesmith.engine.phantom import PassSettings, Tracer, replace_weights, trace_pass

    recipe, tracer = plan.recipe, Tracer()
    replace_weights(outline.model, tracer, outline.weight_types(plan))
    checkpointing = recipe.engine.gradient_checkpointing
    if checkpointing:
        checkpoint_blocks(outline.base, selective=checkpointing == "selective")
    stage_is_linear = recipe.stage.coefficient(passes.largest) is not None
    settings = PassSettings(
        attention=plan.attention if plan.device == "cpu" else None,
        autocast=None if plan.precision == "float32" else getattr(torch, plan.precision),
        linear=stage_is_linear,
        several=passes.follows,
        frees_gradients=recipe.engine.optimizer_in_backward and passes.most == 1,
        keeps_products=checkpointing == "selective",
    )
    alone = replace(settings, training=False, several=False, frees_gradients=False, linear=False)
    try:
        trace = trace_pass(outline.model, outline.base, tracer, passes.largest, settings)
        if not checkpointing and len(passes.checked.tokens) <= len(passes.largest.tokens):
            return trace, trace
        return trace, trace_pass(outline.model, outline.base, tracer, passes.checked, alone)
    except (RuntimeError, NotImplementedError, DataDependentOutputException, DynamicOutputShapeException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NoEstimateError(f"{outline.config.model_type} does not run without numbers ({reason})") from error


def _memory(
    outline: Outline, plan: Plan, prepared: Prepared, machine: Machine, passes: _Passes, trace: Any, check: Any
) -> Memory:
    """Return the need of the worst moment: a pass, the check before the first step, or a checkpoint."""
    static = outline.static(plan)
    weights = {name: size for name, size in static.items() if name != "optimizer"}
    phase = max(trace.peaks, key=lambda name: trace.peaks[name])
    gradients = round(trace.gradients[phase])
    kept = round(min(trace.kept, trace.peaks[phase] - gradients))
    rest = max(0, round(trace.peaks[phase]) - gradients - kept)
    during = {"gradients": gradients, "activations": kept, phase: rest}
    if phase.startswith("backward"):
        during = {"gradients": gradients, "activations": kept + rest}
    moments = {
        f"a pass, {phase}": {**static, **during},
        "the check before the first step": {**weights, "logits": _check_bytes(outline, prepared)},
        "the gradients' check before the first step": {**weights, "activations": round(max(check.peaks.values()))},
        "a checkpoint being written": {**static, "copy of the optimizer": static["optimizer"]},
    }
    if passes.following and not passes.follows:
        share = passes.following / len(passes.largest.tokens)
        later = {"gradients": static["weights that train"], "activations": round((kept + rest) * share)}
        moments["a later pass of a step"] = {**static, **later}
    if plan.processes > 1:
        moments[f"a pass, {phase}"]["gradients of all processes"] = static["weights that train"]
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return _with_overhead(moments[moment], moment, machine, plan, at_most=False)


def _with_overhead(parts: dict[str, int], moment: str, machine: Machine, plan: Plan, *, at_most: bool) -> Memory:
    parts = {name: int(size) for name, size in parts.items() if size}
    parts["fragments"] = round(_FRAGMENTS[machine.device] * sum(parts.values()))
    if machine.device == "cpu" and plan.precision in _KERNELS:
        parts["kernels"] = _KERNELS[plan.precision]
    parts["libraries"] = _LIBRARIES[machine.device]
    total = sum(parts.values())
    return Memory(parts=parts, moment=moment, total=total, available=machine.memory_bytes, at_most=at_most)


def _check_bytes(outline: Outline, prepared: Prepared) -> int:
    """Return what the check's plain forward pass holds: float32 logits of one sequence, and their logarithms."""
    lengths = np.diff(prepared.train.examples.sequence_start)
    short = lengths[lengths <= _CHECKED_TOKENS]
    tokens = int(short.max()) if len(short) else int(lengths.min())
    return tokens * int(outline.config.get_text_config().vocab_size) * 8


def _at_most(outline: Outline, plan: Plan, prepared: Prepared, machine: Machine, passes: _Passes) -> Memory:
    """Return a bound without a trace: what no pass of any kind was seen to exceed."""
    from torch import nn

    static = outline.static(plan)
    features = sum(m.in_features + m.out_features for m in outline.model.modules() if isinstance(m, nn.Linear))
    # experts stand in one tensor of three dimensions; a token goes through a few of them
    features += 8 * sum(p.shape[-1] + p.shape[-2] for p in outline.model.parameters() if p.ndim == 3)
    head = outline.base.get_output_embeddings()
    trains_head = head is not None and any(p.requires_grad for p in head.parameters())
    vocabulary = sum(p.numel() for p in head.parameters()) if trains_head else 0
    tokens = len(passes.largest.tokens)
    parts = {
        **static,
        "gradients": static["weights that train"],
        "activations": features * 4 * 3 * tokens,
        "head and loss": 160 * MIB + vocabulary * 12,
        "logits": _check_bytes(outline, prepared),
    }
    return _with_overhead(parts, "a bound on all of them", machine, plan, at_most=True)


def fit_tokens(outline: Outline, plan: Plan, prepared: Prepared, machine: Machine) -> tuple[Plan, Estimate]:
    """Return *plan* with as many tokens a pass as fit comfortably, unless the recipe says how many; and its cost."""
    found = estimate(outline, plan, prepared, machine, exact=False)
    if plan.recipe.engine.tokens_per_pass is not None or not machine.memory_bytes:
        return plan, found
    chosen, why = plan, f"{plan.why['tokens_per_pass']}, and it fits"
    largest = len(_look_at_passes(plan, prepared).largest.tokens)
    for tokens in _BUDGETS:
        # a budget that no pass reaches changes nothing; nor does any where the weights alone are too many
        if found.memory.share <= _COMFORTABLE or tokens >= largest or _weights_share(found.memory) > 1:
            continue
        chosen = replace(plan, tokens_per_pass=tokens)
        found = estimate(outline, chosen, prepared, machine, exact=True)
        why = f"the most that fits {bytes_text(machine.memory_bytes)} comfortably"
    if found.memory.share > _COMFORTABLE:
        why = f"the fewest worth trying: memory is short ({bytes_text(machine.memory_bytes)})"
    return replace(chosen, why={**chosen.why, "tokens_per_pass": why}), found


def _weights_share(memory: Memory) -> float:
    """Return what is there whatever a pass holds, as a share of the memory."""
    names = ("weights, frozen", "weights that train", "optimizer")
    return sum(memory.parts.get(name, 0) for name in names) / memory.available


def bytes_text(size: float) -> str:
    """Return a size as one reads it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / MIB:.0f} MiB"
