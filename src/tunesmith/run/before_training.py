"""What a stage asks a reference model, once, before the first step; the answers are kept in the run's folder."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import Problem
from tunesmith.core.files import write_text
from tunesmith.engine.example_table import ExampleTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tunesmith.core.events import Listener
    from tunesmith.engine.model import PackModel
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.folder import RunFolder
    from tunesmith.run.plan import Plan
    from tunesmith.run.settle import Settled

FILE = "reference.json"
_AT_ONCE = 1024  # examples between two reports of progress


def check_tokenizers(recipe: Recipe, tokenizer: Any) -> Iterator[Problem]:
    """Yield that another model which the stage asks reads other tokens than *tokenizer*; no weights are loaded."""
    from tunesmith.models.load import find_model, tokenizer_from

    for name in (recipe.stage.teacher_model(), recipe.stage.reference_model()):
        if name is None or name in ("start", "base"):
            continue
        theirs: Any = tokenizer_from(find_model(name, weights=False).tokenizer)
        if tokenizer.get_vocab() != theirs.get_vocab():
            setting = "teacher" if "teacher" in type(recipe.stage).model_fields else "reference"
            yield Problem(
                f"stage.{setting}",
                f"{name} has another tokenizer than the model ({len(theirs)} tokens, not {len(tokenizer)}, or others)",
                hint="name a model that reads the same tokens",
            )


def reference_notices(plan: Plan, held_out: int) -> Iterator[str]:
    """Yield what asking a reference will take."""
    if (teacher := plan.recipe.stage.teacher_model()) is not None:
        yield f"stage.teacher: {teacher} stays in memory beside the model, and each pass runs through both"
    name = plan.recipe.stage.reference_model()
    if name is None:
        return
    seen = len(_used(plan)) + held_out
    what = {"start": "the model that training starts from", "base": "the base, without its adapter"}.get(name, name)
    room = "" if name in ("start", "base") else "; that model is in memory beside this one until then"
    yield (
        f"reference: {what} says how likely it finds {seen} examples, once before the first step: about a third of the "
        f"time that training on them once takes, and no memory that training does not need{room}"
    )


def _used(plan: Plan) -> list[int]:
    """Return the training examples that the run will see."""
    from tunesmith.engine.order import ExampleOrder

    size = plan.recipe.schedule.batch_size
    order = ExampleOrder(plan.examples, size, plan.recipe.seed)
    if plan.steps >= order.steps_per_epoch:
        return list(range(plan.examples))
    return sorted({index for step in range(plan.steps) for index in order.batch(step)})


def ask_reference(
    settled: Settled, packed: PackModel, accelerator: Any, folder: RunFolder, layout: Any, emit: Listener
) -> Settled:
    """Return *settled* with examples that know what the reference model says, where the stage wants to know.

    A run that goes on reads it from its *folder*, so that nothing depends on when it was stopped.
    """
    plan, prepared = settled.plan, settled.prepared
    name = plan.recipe.stage.reference_model()
    if name is None:
        return settled
    held_out = prepared.validation
    wanted = {"train": _used(plan), "validation": list(range(len(held_out.examples))) if held_out else []}
    tables = {"train": prepared.train.examples, **({"validation": held_out.examples} if held_out else {})}
    kept = folder.read(FILE)
    if kept is None:
        from tunesmith.engine.likelihoods import Likelihoods

        kept, done, total = {}, 0, sum(map(len, wanted.values()))
        emit({"kind": "progress", "task": "reference", "done": 0, "total": total})
        with _reference(settled, name, packed, accelerator) as model:
            likelihoods = Likelihoods(model, accelerator, layout, plan.tokens_per_pass)
            for part, table in tables.items():
                kept[part] = []
                for at in range(0, len(wanted[part]), _AT_ONCE):
                    chosen = wanted[part][at : at + _AT_ONCE]
                    kept[part] += plan.recipe.stage.prepare(table, chosen, likelihoods)
                    done += len(chosen)
                    emit({"kind": "progress", "task": "reference", "done": done, "total": total})
        if accelerator.is_main_process:
            write_text(folder.path / FILE, json.dumps(kept))
        accelerator.wait_for_everyone()
    known = {part: _with_values(table, wanted[part], kept[part]) for part, table in tables.items()}
    prepared = replace(prepared, train=replace(prepared.train, examples=known["train"]))
    if held_out is not None:
        prepared = replace(prepared, validation=replace(held_out, examples=known["validation"]))
    return replace(settled, prepared=prepared)


def _with_values(table: ExampleTable, wanted: Sequence[int], answers: Sequence[Sequence[Any]]) -> ExampleTable:
    values = list(table.values or ((),) * len(table))
    for index, answer in zip(wanted, answers, strict=True):
        values[index] = tuple(answer)
    return replace(table, values=tuple(values))


@contextmanager
def _reference(settled: Settled, name: str, packed: PackModel, accelerator: Any) -> Iterator[Any]:
    """Hold the reference model in here."""
    recipe = settled.plan.recipe
    if name not in ("start", "base"):
        yield _load(settled, name, packed, accelerator)
        return
    fresh = recipe.method.adds_adapter and recipe.model.adapter != "continue"
    # a new adapter that is switched off leaves the model that training starts from
    off = name == "base" or (fresh and recipe.method.keeps_base)
    model: Any = packed.model
    virtual = packed.virtual
    try:
        with model.disable_adapter() if off else nullcontext():
            packed.virtual = None if off else virtual
            yield packed
    finally:
        packed.virtual = virtual


def _load(settled: Settled, name: str, packed: PackModel, accelerator: Any) -> Any:
    """Return another model, ready to be asked; it reads the same tokens (:func:`check_tokenizers`)."""
    import torch

    from tunesmith.engine.model import PackModel
    from tunesmith.models.load import find_model, model_from

    dtype = getattr(torch, settled.plan.precision)
    model = model_from(find_model(name), dtype, merge=True).to(accelerator.device)
    model.config.use_cache = False
    return PackModel(model, model, packed.attention.names)
