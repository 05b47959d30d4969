"""Transformer blocks through torch.compile: norms, rotations and activations fused, products as they were.

Only the ``forward`` of each block's instance is set: names, weights and what is saved stay as they were.  A block runs
compiled where gradients are wanted and a pack's segments are the mask; validation, generation, windows and padded rows
take the eager way, so no length of a prompt ever compiles anything.  Packs' lengths are marked as dynamic and all
blocks of a class share their graphs: one for the first block, whose input needs no gradient, and one for the others.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunesmith.core.settings import keep_compiled_code
from tunesmith.engine.attention import opaque, segments
from tunesmith.engine.attention._base import has_rows
from tunesmith.engine.checkpoint import random_state, set_random_state, training_weights
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.engine.pack import Layout, build_packs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunesmith.engine.example import Example

__all__ = ["compile_blocks", "decompile_blocks", "opaque", "try_compiled"]

_EXAMPLES = 4
# relative difference of all gradients together that rounding explains
_ROUNDING = {"no": 1e-3, "bf16": 0.1, "fp16": 0.05}

_compiled: dict[type[nn.Module], Callable[..., Any]] = {}


def compile_blocks(base: Any) -> int:
    """Let every block of *base*, a transformers model, run compiled; return how many there are."""
    keep_compiled_code()
    torch.compiler.reset()  # a process that carries out several runs would come to the limit of graphs
    _compiled.clear()
    names = set(base._no_split_modules or ())
    blocks = [module for module in base.modules() if type(module).__name__ in names]
    for block in blocks:
        block.forward = MethodType(_forward, block)
    return len(blocks)


def decompile_blocks(base: nn.Module) -> None:
    """Give every block its own forward back."""
    for module in base.modules():
        own = vars(module).get("forward")
        if isinstance(own, MethodType) and own.__func__ is _forward:
            del module.forward


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    plain: Callable[..., Any] = type(block).forward
    if not torch.is_grad_enabled() or not has_rows(kwargs.get("attention_mask"), segments.MASK):
        return plain(block, *args, **kwargs)
    if type(block) not in _compiled:
        # one graph or an error: a graph that breaks costs more than it gains.  Dropout draws as the eager way does
        _compiled[type(block)] = torch.compile(plain, fullgraph=True, dynamic=False, options={"fallback_random": True})
    length = kwargs["attention_mask"].shape[-1]
    _mark_length((args, kwargs), length)
    return _compiled[type(block)](block, *args, **kwargs)


def _mark_length(value: Any, length: int) -> None:
    """Tell the compiler which dimension of each tensor in *value* is the pack's length, which changes."""
    if isinstance(value, Tensor):
        at = 3 if value.ndim == 4 else 1
        if value.ndim > at and value.shape[at] == length:
            torch._dynamo.mark_dynamic(value, at)
    elif isinstance(value, dict):
        for inner in value.values():
            _mark_length(inner, length)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _mark_length(inner, length)


def try_compiled(
    model: PackModel, objective: Any, examples: Sequence[Example], layout: Layout, accelerator: Any
) -> str | None:
    """Compile the blocks of *model*, which pays the warm-up; return why it stays eager after all, if it does.

    The loss and the gradients of a pack must be those of the eager blocks.  Leaves no gradient, and draws no random
    numbers.
    """
    by_length = sorted(examples[: 16 * _EXAMPLES], key=lambda e: e.tokens)
    (pack, *_) = build_packs(by_length[:_EXAMPLES], layout, budget=2**31)
    tensors, before = pack.to(accelerator.device), random_state()

    def outcome() -> tuple[float, dict[str, Tensor]]:
        set_random_state(before)
        with accelerator.autocast():
            loss = objective.loss(model(**pack_arguments(tensors)), tensors).total
        loss.backward()
        weights = training_weights(model.model)
        gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
        for parameter in weights.values():
            parameter.grad = None
        return float(loss.detach()), gradients

    expected_loss, expected = outcome()
    notice = None
    try:
        if not compile_blocks(model.base):
            notice = "this model names no blocks to compile"
        else:
            loss, found = outcome()
            far = _distance(found, expected)
            if not far <= _ROUNDING[accelerator.mixed_precision]:
                notice = f"compiled blocks disagree with eager ones (loss {loss:.4f}, {expected_loss:.4f}; {far:.1e})"
    except RuntimeError as error:  # every failure of the compiler is a RuntimeError
        notice = f"the blocks do not compile ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
    finally:
        set_random_state(before)
        for parameter in training_weights(model.model).values():
            parameter.grad = None
    if notice is None:
        return None
    decompile_blocks(model.base)
    return f"{notice}: eager blocks instead"


def _distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return how far all gradients together are off, relative to their norm."""
    if found.keys() != expected.keys():
        return float("inf")
    off = sum(float((found[n] - expected[n]).double().square().sum()) for n in expected)
    return float((off / max(sum(float(g.double().square().sum()) for g in expected.values()), 1e-30)) ** 0.5)
