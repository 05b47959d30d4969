"""Tensors that have sizes but no memory, and the count of what would be alive.

Every storage that appears is added when it is made and taken away when the last tensor that uses it is gone.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm, _aten.addmm, _aten.addmm_, _aten.bmm, _aten.baddbmm, _aten.baddbmm_)
# what follows from the pack alone is computed for real up to this many elements: the engine reads its outline from it
_LARGEST_REAL = 2**20


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
        self.products: set[Any] = set()
        """Matrix products in short numbers by their shapes: the CPU's library keeps a kernel for each."""

    def restart_peak(self) -> int:
        """Return the peak since the last call, and begin anew."""
        peak, self.peak = self.peak, self.alive
        return peak

    def phantom(self, tensor: Tensor) -> Tensor:
        """Return a tensor like *tensor* that holds nothing."""
        with self._fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype)

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
        if func is torch.ops.prim.device.default:  # half of all calls
            return args[0].fake_device
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
        if func._overloadpacket in _PRODUCTS and tensors[0].dtype == torch.bfloat16:
            self.products.add((func, *((tuple(x.shape), x.stride()) for x in tensors)))
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
