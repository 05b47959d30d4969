"""A forward and backward pass without numbers: the engine's own code on tensors that have sizes but no memory.

What a pass keeps alive is not guessed from formulas but counted (:mod:`tunesmith.engine.tracer`), in the order in which
autograd keeps and frees it.  Whatever the engine does (attention by segments, chunks of logits, fused adapters,
checkpoints) is counted as it does.

Blocks of one kind need the same: a pass is traced with two and with three, and drawn out to as many as there are.
So do chunks of predictions, of which a large vocabulary makes hundreds.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunesmith.engine.lora import fuse_lora
from tunesmith.engine.losses import chunk_rows
from tunesmith.engine.model import PackModel, pack_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from tunesmith.engine.pack import Pack
    from tunesmith.engine.tracer import Tracer

FORWARD, HEAD, TOP, REST = "forward", "head and loss", "backward of the last block", "backward of the rest"
_LAST, _BEFORE, _INSIDE, _OUTSIDE = "last block", "block before", "other block", "no block"
PHASES = (FORWARD, HEAD, TOP, REST)


@dataclass(frozen=True)
class PassTrace:
    """What one pass holds beyond the weights, in bytes, and what it computes."""

    peaks: dict[str, float]
    """The most bytes alive in each phase, gradients included."""
    gradients: dict[str, float]
    """Bytes of gradients by the end of each phase."""
    kept: float
    """Bytes that the forward pass through the blocks left for the backward pass."""
    operations: float
    """Floating-point operations of matrix products."""
    products: int = 0
    """Different shapes of matrix products in bfloat16."""

    def plus(self, longer: PassTrace, shorter: PassTrace, times: float) -> PassTrace:
        """Return this trace plus *times* what *longer* has more than *shorter*."""

        def add(own: float, more: float, less: float) -> float:
            return own + (more - less) * times

        return PassTrace(
            {name: add(self.peaks[name], longer.peaks[name], shorter.peaks[name]) for name in PHASES},
            {name: add(self.gradients[name], longer.gradients[name], shorter.gradients[name]) for name in PHASES},
            add(self.kept, longer.kept, shorter.kept),
            add(self.operations, longer.operations, shorter.operations),
            max(self.products, longer.products),  # blocks of one kind multiply the same shapes
        )


def blocks_of(model: nn.Module) -> nn.ModuleList | None:
    """Return the list of modules that holds most of the weights: the model's blocks."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """What decides how a pass runs, beside model and pack."""

    attention: tuple[str, ...] | None = None
    """Backends that may compute attention; None allows all that the CPU has."""
    autocast: torch.dtype | None = None
    """Type of the arithmetic where it is not that of the weights."""
    linear: bool = True
    """Whether the stage's loss is known factors times log-probabilities."""
    several: bool = False
    """Whether gradients of other passes of the step are there already."""
    frees_gradients: bool = False
    """Whether each gradient is freed as soon as it is complete."""
    training: bool = True
    """Whether dropout and checkpoints are on, which the check before the first step switches off."""
    keeps_products: bool = False
    """Whether selective checkpointing keeps the results of matrix products."""
    plain: bool = False
    """Whether transformers' own layers run even where we have a forward pass of our own."""
    reference: bool = False
    """Whether the dense reference computes attention, as where a backend is compared with it."""
    by_input: bool = False
    """Whether only the gradient of the embedded tokens is taken, and none of a weight."""


def trace_pass(
    model: nn.Module, base: PreTrainedModel, tracer: Tracer, pack: Pack, settings: PassSettings
) -> PassTrace:
    """Trace one pass of *pack* through *model*, whose weights ``replace_weights`` made with *tracer*.

    Raises what torch raises where the model's code cannot run without numbers.
    """
    blocks = blocks_of(base)
    if blocks is None:
        return _trace(model, base, tracer, pack, settings)
    every, (few, more) = list(blocks), _chosen_blocks(base, blocks)
    rows, predictions = _chunk_of(base, settings), len(pack.target)
    # the gradient of a head that trains is summed over several chunks
    fewest = 2 if rows and base.get_output_embeddings().weight.requires_grad else 1
    short = _with_predictions(pack, fewest * rows) if rows and predictions > (fewest + 1) * rows else pack

    def trace_with(chosen: list[nn.Module], traced: Pack = short) -> PassTrace:
        _set_blocks(blocks, chosen)
        return _trace(model, base, tracer, traced, settings)

    try:
        result = shortest = trace_with(few)
        if short is not pack:
            longer = trace_with(few, _with_predictions(pack, (fewest + 1) * rows))
            result = result.plus(longer, shortest, predictions / rows - fewest)
        for chosen, times in more:
            result = result.plus(trace_with(chosen), shortest, times)
        return result
    finally:
        _set_blocks(blocks, every)


def draw_out(base: PreTrainedModel, measure: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return what *measure*, which runs *base*, would find with all blocks; it is called with a few of each kind."""
    blocks = blocks_of(base)
    if blocks is None:
        return measure()
    every, (few, more) = list(blocks), _chosen_blocks(base, blocks)
    try:
        _set_blocks(blocks, few)
        result = shortest = measure()
        for chosen, times in more:
            _set_blocks(blocks, chosen)
            result = result + (measure() - shortest) * times
        return result
    finally:
        _set_blocks(blocks, every)


def _chosen_blocks(
    base: PreTrainedModel, blocks: nn.ModuleList
) -> tuple[list[nn.Module], list[tuple[list[nn.Module], float]]]:
    """Return two periods of each kind of block; and for each kind of which there are more, three of it.

    With those goes how many times what they need more than the two must be added, to have all of the kind.
    """
    every, period = list(blocks), _period(base)
    groups = [list(group) for _, group in groupby(range(len(every)), key=lambda i: _kind(every[i]))]
    few = [_some(group, 2, period) for group in groups]

    def modules(chosen: list[list[int]]) -> list[nn.Module]:
        return [every[i] for group in chosen for i in group]

    found = []
    for at, group in enumerate(groups):
        more = _some(group, 3, period)
        if len(more) > len(few[at]):
            times = (len(group) - len(few[at])) / (len(more) - len(few[at]))
            found.append((modules([*few[:at], more, *few[at + 1 :]]), times))
    return modules(few), found


def _chunk_of(base: PreTrainedModel, settings: PassSettings) -> int:
    """Return how many predictions the loss takes at once; 0 where the head is no plain matrix, and chunks are few."""
    head = base.get_output_embeddings()
    if type(head) is not nn.Linear:
        return 0
    size = (settings.autocast or head.weight.dtype).itemsize
    return chunk_rows("cpu", size * head.out_features)


def _with_predictions(pack: Pack, count: int) -> Pack:
    """Return *pack* with its first *count* predictions."""
    names = ("source", "target", "weight", "sequence")
    return replace(pack, **{name: getattr(pack, name)[:count] for name in names})


def _some(group: list[int], count: int, period: int) -> list[int]:
    """Return the first *count* periods of a group of like blocks, and its incomplete last one."""
    whole = len(group) // period
    return group if whole <= count else group[: count * period] + group[whole * period :]


def _period(base: PreTrainedModel) -> int:
    """Return after how many blocks the kinds of attention repeat."""
    types = getattr(base.config.get_text_config(), "layer_types", None)
    if not types:
        return 1
    return next(n for n in range(1, len(types) + 1) if all(t == types[i % n] for i, t in enumerate(types)))


def _kind(block: nn.Module) -> tuple[Any, ...]:
    return tuple((name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in block.named_parameters())


def _set_blocks(blocks: nn.ModuleList, chosen: Sequence[nn.Module]) -> None:
    del blocks[:]
    blocks.extend(chosen)


@dataclass
class _Watch:
    """Notes peaks and gradients at the borders of phases, which it knows by the weights that are used."""

    tracer: Tracer
    weights: list[nn.Parameter]
    start: int
    phase: str = FORWARD
    kept: int = 0
    reached_last: bool = False
    peaks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    gradients: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def leave(self, following: str) -> None:
        """End the phase that was, and begin the *following* one."""
        self.peaks[self.phase] = max(self.peaks[self.phase], self.tracer.restart_peak() - self.start)
        self.gradients[self.phase] = sum(w.grad.nbytes for w in self.weights if w.grad is not None)
        self.phase = following

    def hear(self, label: str) -> None:
        """Note that a weight of the last block, of the one before, or of none is about to be used."""
        if self.phase == FORWARD:
            self.reached_last |= label == _LAST
            if self.reached_last and label == _OUTSIDE:
                self.kept = self.tracer.alive - self.start
                self.leave(HEAD)
        elif self.phase == TOP and label == _BEFORE:
            self.leave(REST)


def _trace(model: nn.Module, base: PreTrainedModel, tracer: Tracer, pack: Pack, settings: PassSettings) -> PassTrace:
    packed = PackModel(model, base, settings.attention)
    packed.keeps_products = settings.keeps_products
    if settings.plain:
        packed.decoder = None
    fuse_lora(model, in_place=not settings.keeps_products)
    model.train(settings.training)
    weights = [p for p in model.parameters() if p.requires_grad]
    blocks = blocks_of(base)
    tracer.restart_peak()
    watch, operations = _Watch(tracer, weights, tracer.alive), tracer.operations
    tracer.products.clear()
    hooks, embedded = _hook(base, weights, settings)
    with tracer:  # before anybody listens: to make them says nothing about where the pass is
        for parameter in weights if settings.several else ():
            parameter.grad = torch.empty_like(parameter)
    if blocks is not None:
        tracer.label(model.parameters(), _OUTSIDE)
        for at, block in enumerate(blocks, start=-len(blocks)):
            tracer.label(block.parameters(), {-1: _LAST, -2: _BEFORE}.get(at, _INSIDE))
        tracer.heard = watch.hear
    try:
        with tracer:
            tensors = pack.to("cpu")
            # no size follows from what these hold, and real ones are converted for each operation
            tensors = replace(tensors, target=tracer.phantom(tensors.target), weight=tracer.phantom(tensors.weight))
            attention = packed.attention.only_reference() if settings.reference else nullcontext()
            with torch.autocast("cpu", dtype=settings.autocast, enabled=settings.autocast is not None), attention:
                coefficient = -tensors.weight if settings.linear else None
                loss = packed(**pack_arguments(tensors), coefficient=coefficient).sum()
            watch.leave(TOP)
            if settings.by_input:
                torch.autograd.grad(loss, embedded[:1])
            elif loss.requires_grad:
                loss.backward()
            watch.leave(REST)
    finally:
        tracer.heard = None
        for parameter in weights:
            parameter.grad = None
        for hook in hooks:
            hook.remove()
    done, products = tracer.operations - operations, len(tracer.products)
    return PassTrace(watch.peaks, watch.gradients, float(watch.kept), done, products)


def _hook(base: PreTrainedModel, weights: list[nn.Parameter], settings: PassSettings) -> tuple[list[Any], list[Tensor]]:
    """Return the hooks that *settings* ask for, and a list that will hold the embedded tokens."""
    hooks: list[Any] = []
    embedded: list[Tensor] = []
    if settings.frees_gradients:
        hooks += [p.register_post_accumulate_grad_hook(_free_gradient) for p in weights]
    if settings.by_input:

        def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
            embedded.append(output.requires_grad_())

        hooks.append(base.get_input_embeddings().register_forward_hook(keep))
    return hooks, embedded


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None
