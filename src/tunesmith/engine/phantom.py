"""A forward and backward pass without numbers: the engine's own code on tensors that have sizes but no memory.

What a pass keeps alive is not guessed from formulas but counted: every storage that appears is added when it is made
and taken away when the last tensor that uses it is gone, in the order in which autograd keeps and frees them.
Whatever the engine does (attention by segments, chunks of logits, fused adapters, checkpoints) is counted as it does.

Blocks of one kind need the same: a pass is traced with two and with three, and drawn out to as many as there are.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tunesmith.engine.lora import fuse_lora
from tunesmith.engine.model import PackModel, pack_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from transformers import PreTrainedModel

    from tunesmith.engine.pack import Pack

_aten = torch.ops.aten
# what follows from the pack alone is computed for real up to this many elements: the engine reads its outline from it
_LARGEST_REAL = 2**20
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

    def plus(self, longer: PassTrace, shorter: PassTrace, times: float) -> PassTrace:
        """Return this trace plus *times* what *longer* has more than *shorter*."""

        def add(own: float, more: float, less: float) -> float:
            return own + (more - less) * times

        return PassTrace(
            {name: add(self.peaks[name], longer.peaks[name], shorter.peaks[name]) for name in PHASES},
            {name: add(self.gradients[name], longer.gradients[name], shorter.gradients[name]) for name in PHASES},
            add(self.kept, longer.kept, shorter.kept),
            add(self.operations, longer.operations, shorter.operations),
        )


class Tracer(TorchDispatchMode):
    """Runs what is computed inside without memory or arithmetic, and counts the bytes that would be alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._seen: dict[int, Any] = {}
        self._labels: dict[int, str] = {}
        self.heard: Callable[[str], None] | None = None
        """Called with the label of a weight before an operation uses it."""
        self.alive = 0
        self.peak = 0
        self.operations = 0

    def restart_peak(self) -> int:
        """Return the peak since the last call, and begin anew."""
        peak, self.peak = self.peak, self.alive
        return peak

    def label(self, weights: Iterable[Tensor], name: str) -> None:
        """Let those who listen know when one of these *weights*, or its copy in another type, is used."""
        self._labels |= {weight.untyped_storage()._cdata: name for weight in weights}

    def __torch_dispatch__(  # noqa: C901 - what is computed for real is decided in one place
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        labels = [label for x in tensors if (label := self._labels.get(x.untyped_storage()._cdata))]
        if self.heard is not None:
            for label in labels:
                self.heard(label)
        if any(isinstance(x, FakeTensor) for x in tensors):
            if func in (_aten.index.Tensor, _aten.index_put_.default, _aten._index_put_impl_.default):
                args = (args[0], _without_booleans(args[1]), *args[2:])
            with self._fake:
                out = func(*args, **kwargs)
        elif tensors and _broadcast_size(tensors) <= _LARGEST_REAL:
            out = func(*args, **kwargs)
        else:
            with self._fake:
                out = func(*args, **kwargs)
            # small ones are made: the engine may keep them for the passes to come
            if all(x.numel() <= _LARGEST_REAL for x in _tensors(out)):
                out = func(*args, **kwargs)
        made = _tensors(out)
        for tensor in made:
            self._count(tensor)
            if len(tensors) == 1 and labels and tensor.shape == tensors[0].shape:
                self._labels.setdefault(tensor.untyped_storage()._cdata, labels[0])
        if len(made) == 1:
            self.peak = max(self.peak, self.alive + _working_bytes(func, tensors))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **kwargs, out_val=out)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: Any) -> None:
            self.alive -= size
            del self._seen[key]
            self._labels.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _without_booleans(index: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return *index* with masks, whose sizes depend on their values, written as positions."""
    out: list[Tensor | None] = []
    for each in index:
        out += [each] if each is None or each.dtype != torch.bool else list(each.nonzero(as_tuple=True))
    return out


def _broadcast_size(tensors: Sequence[Tensor]) -> int:
    try:
        return int(torch.broadcast_shapes(*(t.shape for t in tensors)).numel())
    except RuntimeError:
        return max(t.numel() for t in tensors)


def _working_bytes(func: Any, tensors: Sequence[Tensor]) -> int:
    """Return what the CPU's kernel of *func* holds while it runs, beside what goes in and comes out.

    Seen in torch's profiler (2.13): elementwise kernels cast inputs of another type beforehand, and a log-sum-exp holds
    the exponentials of its whole input.
    """
    if func._overloadpacket is _aten.logsumexp:
        return tensors[0].numel() * tensors[0].element_size()
    if torch.Tag.pointwise not in func.tags or len(tensors) < 2 or func._overloadpacket is _aten.copy_:
        return 0
    wide = [t.dtype for t in tensors if t.is_floating_point() and t.ndim]
    if not wide:
        return 0
    common = wide[0]
    for dtype in wide[1:]:
        common = torch.promote_types(common, dtype)
    return sum(t.numel() * common.itemsize for t in tensors if t.ndim and t.is_floating_point() and t.dtype != common)


def replace_weights(model: nn.Module, tracer: Tracer, dtype_of: Callable[[nn.Parameter], torch.dtype]) -> None:
    """Give *model*, built on the meta device, weights that seem to lie on the CPU, each of the type asked for."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    weight = isinstance(tensor, nn.Parameter)
                    whole = weight and tensor.is_floating_point()
                    dtype = dtype_of(cast("nn.Parameter", tensor)) if whole else tensor.dtype
                    with tracer:
                        empty = torch.empty(tensor.shape, dtype=dtype, device="cpu")
                        made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if weight else empty
                own[name] = made[id(tensor)]  # type: ignore[assignment]


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


def trace_pass(
    model: nn.Module, base: PreTrainedModel, tracer: Tracer, pack: Pack, settings: PassSettings
) -> PassTrace:
    """Trace one pass of *pack* through *model*, whose weights :func:`replace_weights` made with *tracer*.

    Raises what torch raises where the model's code cannot run without numbers.
    """
    blocks = blocks_of(base)
    if blocks is None:
        return _trace(model, base, tracer, pack, settings)
    every, period = list(blocks), _period(base)
    groups = [list(group) for _, group in groupby(range(len(every)), key=lambda i: _kind(every[i]))]
    few = [_some(group, 2, period) for group in groups]

    def trace_with(chosen: list[list[int]]) -> PassTrace:
        _set_blocks(blocks, [every[i] for group in chosen for i in group])
        return _trace(model, base, tracer, pack, settings)

    try:
        result = shortest = trace_with(few)
        for at, group in enumerate(groups):
            more = _some(group, 3, period)
            if len(more) > len(few[at]):
                longer = trace_with([*few[:at], more, *few[at + 1 :]])
                times = (len(group) - len(few[at])) / (len(more) - len(few[at]))
                result = result.plus(longer, shortest, times)
        return result
    finally:
        _set_blocks(blocks, every)


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
    fuse_lora(model, in_place=not settings.keeps_products)
    model.train(settings.training)
    weights = [p for p in model.parameters() if p.requires_grad]
    blocks = blocks_of(base)
    tracer.restart_peak()
    watch, operations = _Watch(tracer, weights, tracer.alive), tracer.operations
    hooks = [p.register_post_accumulate_grad_hook(_free_gradient) for p in weights if settings.frees_gradients]
    if blocks is not None:
        tracer.label(model.parameters(), _OUTSIDE)
        for at, block in enumerate(blocks, start=-len(blocks)):
            tracer.label(block.parameters(), {-1: _LAST, -2: _BEFORE}.get(at, _INSIDE))
        tracer.heard = watch.hear
    try:
        with tracer:
            for parameter in weights if settings.several else ():
                parameter.grad = torch.empty_like(parameter)
            tensors = pack.to("cpu")
            with torch.autocast("cpu", dtype=settings.autocast, enabled=settings.autocast is not None):
                coefficient = -tensors.weight if settings.linear else None
                loss = packed(**pack_arguments(tensors), coefficient=coefficient).sum()
            watch.leave(TOP)
            if loss.requires_grad:
                loss.backward()
            watch.leave(REST)
    finally:
        tracer.heard = None
        for parameter in weights:
            parameter.grad = None
        for hook in hooks:
            hook.remove()
    return PassTrace(watch.peaks, watch.gradients, float(watch.kept), tracer.operations - operations)


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None
