"""How long a run will take, from a few steps: its own model with random weights, as many blocks as a moment allows.

A step is timed as the loop makes it (the pass over a usual pack, then clipping and the optimizer), with two numbers of
blocks, and drawn out to all of them; so is an evaluation.  What a checkpoint writes is written once to the disk.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.engine.pack import build_packs
from tunesmith.run.outline import Outline
from tunesmith.run.speed import Job, Speed, product_rate, wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunesmith.engine.pack import Pack

# a machine has other work, and data differ: how far off a measurement can be
MEASURED = 1.3
# as many blocks are timed as are thought to take so long, …
_STEP_SECONDS = 3.0
# … again and again for so long, after a first time that makes kernels ready
_PROBE_SECONDS = 3.0
_FEWEST_TIMES = 3
_FEW = 2
_WRITTEN_BYTES = 2**26


@dataclass(frozen=True)
class _Times:
    """Seconds of a pass with its gradients, of the optimizer's part, and of a pass without gradients."""

    trained: float
    update: float
    judged: float

    def drawn_out(self, more: _Times, times: float) -> _Times:
        """Return this plus *times* what *more* takes longer."""

        def add(own: float, other: float) -> float:
            return own + max(0.0, other - own) * times

        return _Times(add(self.trained, more.trained), add(self.update, more.update), add(self.judged, more.judged))


def probe_speed(job: Job) -> Speed:
    """Time steps of *job*'s model for a few seconds."""
    plan, cost = job.plan, job.cost
    pack = cost.passes.usual
    times = _time_model(job, pack)
    share = cost.passes.tokens_fed / len(pack.tokens)
    judged = _evaluated_tokens(job) / len(pack.tokens) * times.judged
    evaluations = 0 if plan.evaluate_every is None else -(-plan.steps // plan.evaluate_every)
    # an evaluation that finds better weights keeps them, and most of a short run's do
    intervals = [each for each in (plan.evaluate_every, plan.checkpoint_every) if each is not None]
    checkpoints = len({plan.steps, *(step for each in intervals for step in range(each, plan.steps, each))})
    step = times.trained * share + times.update
    assert cost.work is not None
    reached = cost.work.operations / step / product_rate(job.machine.device, plan.precision, 0.3)
    why = f"timed: {step:.3g} s a step, {reached:.0%} of this machine's best product"
    if evaluations:
        why += f"; {judged:.3g} s an evaluation"
    written = _checkpoint_seconds(job)
    why += f"; {written:.3g} s a checkpoint"
    return Speed(step, MEASURED, why, evaluations * judged + checkpoints * written)


def _time_model(job: Job, pack: Pack) -> _Times:
    """Return the times of the whole model, from those of a part of it where it is large."""
    from tunesmith.engine.phantom import blocks_of

    assert job.cost.work is not None
    count = len(blocks_of(job.outline.base) or ())
    rate = product_rate(job.machine.device, job.plan.precision, 0.3)
    whole = job.cost.work.operations * len(pack.tokens) / job.cost.passes.tokens_fed / (rate / 3)
    most = int(count * _STEP_SECONDS / max(whole, 1e-9))
    if most >= count or count < _FEW + 2:
        return _time_blocks(job, pack, None)
    few = _time_blocks(job, pack, _FEW)
    more = min(max(most, 2 * _FEW), count)  # what a block takes is multiplied, its error too: the more the better
    return few.drawn_out(_time_blocks(job, pack, more), (count - _FEW) / (more - _FEW))


def _time_blocks(job: Job, pack: Pack, blocks: int | None) -> _Times:
    """Return the times of the model with its first so many *blocks*, or all."""
    import torch

    from tunesmith.engine.checkpoint import training_weights
    from tunesmith.engine.objective import pass_loss

    plan, recipe, device = job.plan, job.plan.recipe, torch.device(job.machine.device)
    packed = _make_model(job, blocks, device)
    weights = list(training_weights(packed.model).values())
    chosen = recipe.optimizer.model_copy(update=recipe.method.optimizer_settings())
    optimizer = chosen.build(packed.model, plan.learning_rate)
    tensors = pack.to(device)
    short = plan.precision != "float32"
    autocast = torch.autocast(device.type, getattr(torch, plan.precision) if short else None, enabled=short)

    def train() -> None:
        with autocast:
            loss = pass_loss(packed, recipe.stage, tensors)
        loss.total.backward()

    def update() -> None:
        if recipe.schedule.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(weights, recipe.schedule.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def judge() -> None:
        with torch.no_grad(), autocast:
            pass_loss(packed, recipe.stage, tensors)

    packed.train()
    trained, updated = _time_in_turn([train, update], job.machine.device)
    packed.eval()
    (judged,) = _time_in_turn([judge], job.machine.device)
    return _Times(trained, updated, judged)


def _time_in_turn(parts: list[Callable[[], None]], device: str) -> list[float]:
    """Return the fewest seconds of each of *parts*, run one after another; in the first round kernels are made."""
    found: list[list[float]] = [[] for _ in parts]
    end = time.perf_counter() + _PROBE_SECONDS
    while time.perf_counter() < end or len(found[0]) <= _FEWEST_TIMES:
        for part, times in zip(parts, found, strict=True):
            began = time.perf_counter()
            part()
            wait(device)
            times.append(time.perf_counter() - began)
    return [min(times[1:]) for times in found]  # the least disturbed


def _make_model(job: Job, blocks: int | None, device: Any) -> Any:
    """Return the run's model with random weights, its first so many *blocks* or all, as the run would make it."""
    import torch

    from tunesmith.engine.activations import checkpoint_blocks
    from tunesmith.engine.lora import fuse_lora
    from tunesmith.engine.model import PackModel
    from tunesmith.engine.phantom import blocks_of

    recipe = job.plan.recipe
    outline = Outline(recipe, copy.deepcopy(job.outline.config))
    found = blocks_of(outline.base)
    if blocks is not None and found is not None:
        del found[blocks:]
    dtype_of = job.outline.weight_types(job.plan)
    for parameter in outline.model.parameters():  # before there is memory for them
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype_of(parameter))
    model = outline.model.to_empty(device=device)
    base = recipe.method.base_model(model)
    draw = torch.Generator(device).manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        # no numbers that are slow to compute with: neither endless nor too small
        tensor.data.normal_(0, 0.02, generator=draw) if tensor.is_floating_point() else tensor.data.zero_()
    checkpointing = recipe.engine.gradient_checkpointing
    if checkpointing:
        checkpoint_blocks(base, selective=checkpointing == "selective")
    packed = PackModel(model, base, job.plan.attention)
    packed.keeps_products = checkpointing == "selective"
    fuse_lora(model, in_place=not packed.keeps_products)
    return packed


def _evaluated_tokens(job: Job) -> int:
    """Return how many tokens an evaluation runs through the model."""
    if job.plan.evaluate_every is None or job.prepared.validation is None:
        return 0
    packs = build_packs(list(job.prepared.validation.examples), job.plan.layout, job.plan.tokens_per_pass)
    return sum(len(pack.tokens) for pack in packs)


def _checkpoint_seconds(job: Job) -> float:
    """Return how long it takes to write what trains and the optimizer's state."""
    static = job.outline.static(job.plan)
    size = static["weights that train"] + static["optimizer"]
    count = min(size, _WRITTEN_BYTES)
    content = bytes(count)
    with tempfile.TemporaryFile(dir=_existing(job.plan.recipe.output)) as file:
        began = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # as a checkpoint is: what is not on the disk has not been saved
        seconds = time.perf_counter() - began
    return seconds * size / max(1, count)


def _existing(folder: Path) -> Path:
    """Return *folder*, or the nearest above it that is there."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
