"""What a run needs of its device's memory at its worst moment, and how that compares with what is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tunesmith.core.settings import KEPT_KERNELS
from tunesmith.run.sampled import bound_sampling, writes_here, written_together

if TYPE_CHECKING:
    from tunesmith.run.machine import Machine
    from tunesmith.run.outline import Outline
    from tunesmith.run.passes import Passes
    from tunesmith.run.plan import Plan
    from tunesmith.run.prepared import Prepared

MIB = 2**20
# what a process holds beside its tensors, measured by bench/memory_table.py (docs/memory.md): Python and the libraries
# once imported and used; on CUDA our judgement of the context and its kernels
_LIBRARIES = {"cpu": 330 * MIB, "mps": 700 * MIB, "cuda": 600 * MIB}
# what those take besides at their first training step on a CPU: pools of threads, buffers of products, Arrow
_IN_USE = 75 * MIB
# allocators cannot use all of what they hold: share of the tensors' peak
_FRAGMENTS = {"cpu": 0.09, "mps": 0.09, "cuda": 0.04}
# the CPU's library keeps a kernel for each shape of a bfloat16 product (oneDNN's cache of primitives, before it
# torch's): what malloc counts after a hundred shapes, and how many the two hold
_KERNEL_BYTES, _MOST_KERNELS = 0.54 * MIB, 2 * KEPT_KERNELS
# what is made only when the checks before the first step are done
_AFTER_THE_CHECKS = ("optimizer", "start weights", "reward model")
_OVERHEAD = ("fragments", "kernels", "libraries", "libraries at work")
# fits plainly below, does not fit above; between the two nobody should promise anything
CLOSE, TOO_MUCH = 0.9, 1.1
# the self-check before the first step takes examples of at most so many tokens (engine/check.py)
_CHECKED_TOKENS = 128


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
    def of_a_pass(self) -> bool:
        """Whether it is a pass that needs the most, so that one of fewer tokens needs less."""
        return "pass" in self.moment or self.at_most

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


def count_memory(
    outline: Outline, plan: Plan, prepared: Prepared, machine: Machine, passes: Passes, trace: Any
) -> Memory:
    """Return the need of the worst moment: a pass, a check before the first step, the optimizer, or sampling."""
    static = outline.static(plan)
    weights = {name: size for name, size in static.items() if name not in _AFTER_THE_CHECKS}
    trace = _on_device(trace, outline, plan, passes)
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
        **_check_moments(outline, weights),
        **_reference_moment(outline, plan, weights, trace),
        **{name: {**static, **parts} for name, parts in (outline.sampling or {}).items()},
        **_step_moment(outline, plan, static),
    }
    if passes.following and not passes.follows:
        share = passes.following / len(passes.largest.tokens)
        later = {"gradients": static["weights that train"], "activations": round((kept + rest) * share)}
        moments["a later pass of a step"] = {**static, **later}
    if plan.processes > 1:
        moments[f"a pass, {phase}"]["gradients of all processes"] = static["weights that train"]
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return _with_overhead(moments[moment], moment, machine, plan, kernels=_count_kernels(passes, trace))


def _step_moment(outline: Outline, plan: Plan, static: dict[str, int]) -> dict[str, dict[str, int]]:
    """Return what is there while the optimizer changes the weights, where that takes more than it keeps."""
    shapes = [tuple(p.shape) for p in outline.model.parameters() if p.requires_grad]
    taken = plan.recipe.optimizer.step_bytes(shapes, plan.device)
    if not taken:
        return {}
    gradients = 0 if plan.recipe.engine.optimizer_in_backward else static["weights that train"]
    return {"the optimizer's step": {**static, "gradients": gradients, "averages unpacked": round(taken)}}


def _count_kernels(passes: Passes, trace: Any) -> float:
    """Return for how many shapes of products there will be a kernel."""
    # before the first step two packs more, and sequences one by one, of which no gradient is taken
    return float(trace.products * (passes.sizes + 2 + passes.alone / 3))


def _on_device(trace: Any, outline: Outline, plan: Plan, passes: Passes) -> Any:
    """Return *trace*, made as on the CPU, with the larger chunks of logits that other devices take at once."""
    from torch import nn

    from tunesmith.engine.losses import chunk_memory
    from tunesmith.engine.phantom import HEAD, TOP

    head = outline.base.get_output_embeddings()
    if plan.device == "cpu" or type(head) is not nn.Linear:
        return trace
    number = 4 if plan.precision == "float32" else 2
    given = (head.out_features, number, len(passes.largest.target))
    more = chunk_memory(plan.device, *given) - chunk_memory("cpu", *given)
    linear = plan.recipe.stage.coefficient(passes.largest) is not None
    peaks = {
        name: peak + more if name == HEAD or (name == TOP and not linear) else peak
        for name, peak in trace.peaks.items()
    }
    return replace(trace, peaks=peaks)


def _check_moments(outline: Outline, weights: dict[str, int]) -> dict[str, dict[str, int]]:
    """Return what is there while engine/check.py compares attention, and then gradients."""
    check = outline.check
    if check is None:  # a pass plainly needs more
        return {}
    # those of our own layers are kept until those of transformers' have been compared, one at a time
    gradients = weights["weights that train"] if check.twice else 0
    return {
        "the check of attention before the first step": {**weights, "activations": check.attention},
        "the check of gradients before the first step": {
            **weights,
            "activations": check.gradients,
            "gradients": gradients,
        },
    }


def _reference_moment(outline: Outline, plan: Plan, weights: dict[str, int], trace: Any) -> dict[str, dict[str, int]]:
    """Return what is there while another model is asked what it finds likely, before there is an optimizer."""
    import torch

    from tunesmith.engine.phantom import FORWARD

    if not outline.reference_weights:
        return {}
    size = outline.reference_weights * getattr(torch, plan.precision).itemsize
    # nothing is kept for a backward pass, and the logits come as in training
    logits = max(0, round(max(trace.peaks.values()) - trace.peaks[FORWARD]))
    return {"the reference being asked": {**weights, "reference model": size, "logits": logits}}


def _with_overhead(
    parts: dict[str, int], moment: str, machine: Machine, plan: Plan, *, kernels: float, at_most: bool = False
) -> Memory:
    parts = {name: int(size) for name, size in parts.items() if size}
    parts["fragments"] = round(_FRAGMENTS[machine.device] * sum(parts.values()))
    if machine.device == "cpu" and plan.precision == "bfloat16":
        parts["kernels"] = round(min(kernels, _MOST_KERNELS) * _KERNEL_BYTES)
    if machine.device == "cpu":
        parts["libraries at work"] = _IN_USE
    parts["libraries"] = _LIBRARIES[machine.device]
    total = sum(parts.values())
    return Memory(parts=parts, moment=moment, total=total, available=machine.memory_bytes, at_most=at_most)


def _check_bytes(outline: Outline, prepared: Prepared) -> int:
    """Return what the check's plain forward pass holds: float32 logits of one sequence, and their logarithms."""
    lengths = np.diff(prepared.train.examples.sequence_start)
    short = lengths[lengths <= _CHECKED_TOKENS]
    tokens = int(short.max()) if len(short) else int(lengths.min())
    return tokens * int(outline.config.get_text_config().vocab_size) * 8


def bound_memory(outline: Outline, plan: Plan, prepared: Prepared, machine: Machine, passes: Passes) -> Memory:
    """Return a bound without a trace: what no pass of any kind was seen to exceed."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    static = outline.static(plan)
    linears = [m for m in outline.model.modules() if isinstance(m, nn.Linear)]
    features = sum(m.in_features + m.out_features for m in linears)
    features += sum(sum(m.weight.shape) for m in outline.model.modules() if isinstance(m, Conv1D))  # GPT-2's
    # a packed layer is unpacked for each of its products
    unpacked = 4 * max((m.weight.numel() for m in linears), default=0) if outline.packed else 0
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
        "unpacked weights": unpacked,
        "logits": _check_bytes(outline, prepared),
        "reference model": 4 * outline.reference_weights,
    }
    if writes_here(plan.recipe):
        words = int(outline.config.get_text_config().vocab_size)
        parts |= bound_sampling(written_together(plan, prepared), features, words)
    return _with_overhead(parts, "a bound on all of them", machine, plan, kernels=_MOST_KERNELS, at_most=True)


def scaled_share(memory: Memory, tokens: float) -> float:
    """Return *memory* as a share of what is there, had its pass so many times the *tokens*."""
    fixed = weights_share(memory) * memory.available + sum(memory.parts.get(name, 0) for name in _OVERHEAD)
    return (fixed + (memory.total - fixed) * tokens) / memory.available


def weights_share(memory: Memory) -> float:
    """Return what is there whatever a pass holds, as a share of the memory."""
    names = ("teacher", "weights, frozen", "weights that train", *_AFTER_THE_CHECKS)
    return sum(memory.parts.get(name, 0) for name in names) / memory.available


def bytes_text(size: float) -> str:
    """Return a size as one reads it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / MIB:.0f} MiB"
