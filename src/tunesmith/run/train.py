"""Train: carry a recipe out, from its data to weights that were compared with the base model."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Listener, ignore
from tunesmith.core.settings import process_settings
from tunesmith.engine.pack import ROWS
from tunesmith.models.load import find_model
from tunesmith.models.quantized_base import count_weights
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.assemble import assemble_loop, assemble_model, compile_blocks
from tunesmith.run.before_training import ask_reference
from tunesmith.run.finish import finish
from tunesmith.run.fit import refuse_too_large
from tunesmith.run.folder import RunFolder
from tunesmith.run.machine import library_versions
from tunesmith.run.plan import Plan
from tunesmith.run.report import write_report
from tunesmith.run.sampling_server import check_sampling_server
from tunesmith.run.settle import Settled, settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.engine.loop import TrainingLoop
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.prepared import Prepared


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: RunFolder
    reason: str
    """``finished``, ``early stopping``, or the name of the signal that stopped it."""

    @property
    def complete(self) -> bool:
        """Whether the run has its weights; one that was stopped can be resumed."""
        return self.reason in ("finished", "early stopping")


def train(recipe: Recipe, listener: Listener = ignore, *, overwrite: bool = False) -> Outcome:
    """Carry *recipe* out; raise :class:`UserError` before the weights load for all that cannot work."""
    settled = _settle(recipe, listener)
    main = process_settings().rank == 0
    folder = RunFolder.create(recipe, overwrite=overwrite) if main else RunFolder(recipe.output)
    if main:
        folder.write("plan.json", settled.plan.as_data())
        folder.write("data.json", settled.prepared.as_data())
        folder.write("manifest.json", _manifest(settled))
    return _carry_out(settled, folder, listener, checkpoint=None)


def resume(path: Path, listener: Listener = ignore) -> Outcome:
    """Go on with the run in *path* from its newest checkpoint, exactly as if it had never stopped."""
    from tunesmith.engine.checkpoint import list_checkpoints

    folder = RunFolder.open(path)
    saved = list_checkpoints(folder.checkpoints)
    if folder.weights.is_dir():
        write_report(folder.path)
        raise UserError(f"{path} is finished; to train further, start a new recipe with model: {path}")
    settled = _settle(_as_settled_before(folder), listener)
    _check_unchanged(folder, settled.prepared)
    checkpoint = saved[-1][1] if saved else None
    if process_settings().rank == 0:
        folder.forget_after(saved[-1][0] if saved else 0)
    listener(
        {"kind": "notice", "text": f"resuming from {checkpoint}" if checkpoint else "no checkpoint yet: starting again"}
    )
    return _carry_out(settled, folder, listener, checkpoint=checkpoint)


def _settle(recipe: Recipe, listener: Listener) -> Settled:
    settled = settle(recipe, listener)
    if not settled.machine.has_torch:
        raise UserError("training needs torch: pip install torch")
    refuse_too_large(settled)
    check_sampling_server(settled, listener)
    for text in settled.plan.notices:
        listener({"kind": "notice", "text": text})
    return settled


def _as_settled_before(folder: RunFolder) -> Recipe:
    """Return the run's recipe with what its plan chose written in: another machine might choose otherwise."""
    recipe, plan = folder.recipe(), folder.read("plan.json")
    if plan is None:
        return recipe
    chosen = plan["settled"]
    engine = {name: chosen[name] for name in ("layout", "tokens_per_pass", "precision")}
    if engine["layout"] in ROWS:
        engine["attention"] = "auto"  # what was asked for packs has found none
    # compiled blocks round otherwise than eager ones: a run ends as it began
    engine["compile"] = chosen.get("compile", False)
    values = recipe.model_dump(mode="json")
    values["engine"] |= engine
    values["schedule"] |= {"learning_rate": chosen["learning_rate"]}
    return recipe_from_values(values, str(folder.path / "plan.json"))


def _check_unchanged(folder: RunFolder, prepared: Prepared) -> None:
    before = {f["path"]: f["sha256"] for f in (folder.read("manifest.json") or {}).get("data", {}).get("files", [])}
    changed = [f["path"] for f in prepared.files if before.get(f["path"], f["sha256"]) != f["sha256"]]
    if changed:
        raise UserError(
            f"{', '.join(changed)} changed since the run began, so it cannot go on as if it had not stopped; "
            "put the file back, or start a new run"
        )


def _carry_out(settled: Settled, folder: RunFolder, listener: Listener, checkpoint: Path | None) -> Outcome:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed

    from tunesmith.engine.check import check_gradients, choose_layout

    plan, recipe, prepared = settled.plan, settled.plan.recipe, settled.prepared
    mixed = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[plan.precision]
    # a process (studio, sweep) carries out several runs; accelerate would hold all to the precision of the first
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=mixed, cpu=plan.device == "cpu")

    def emit(event: Event) -> None:
        if accelerator.is_main_process:
            if event["kind"] != "progress":
                folder.record(event)
            listener(event)

    emit({"kind": "notice", "text": "loading the model"})
    packed = assemble_model(settled, accelerator)
    layout, notices = choose_layout(packed, prepared.train.examples, plan.layout, accelerator)
    settled = ask_reference(settled, packed, accelerator, folder, layout, emit)
    prepared = settled.prepared
    notices += check_gradients(packed, recipe.stage, prepared.train.examples, layout, accelerator)
    eager = compile_blocks(settled, packed, layout, accelerator, emit) if plan.compile else None
    for text in (*notices, *filter(None, [eager])):
        emit({"kind": "notice", "text": text})
    if accelerator.is_main_process:
        _record_model(folder, packed.model)
        folder.write("plan.json", _with_layout(plan, layout, packed.attention, notices, eager))
    loop = assemble_loop(settled, packed, accelerator, folder, layout)
    set_seed(recipe.seed)
    if checkpoint is not None:
        loop.resume(checkpoint)
    validation = prepared.validation.examples if prepared.validation else []
    emit({"kind": "begin", "steps": plan.steps, "examples": plan.examples, "step": loop.progress.step})
    with _stopping(loop):
        reason = loop.run(prepared.train.examples, validation, emit)
    emit({"kind": "end", "step": loop.progress.step, "reason": reason})
    outcome = Outcome(folder, reason)
    if outcome.complete:
        finish(settled, loop, layout, emit)
    if accelerator.is_main_process:
        write_report(folder.path)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return outcome


@contextmanager
def _stopping(loop: TrainingLoop) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the loop after its step; a second one ends the process at once."""
    before: dict[int, Any] = {}

    def stop(number: int, _: Any) -> None:
        loop.request_stop(signal.Signals(number).name)
        signal.signal(number, before[number] or signal.SIG_DFL)

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        try:
            before[number] = signal.signal(number, stop)
        except ValueError:  # not the main thread: whoever runs us there stops us another way
            break
    try:
        yield
    finally:
        for given, handler in before.items():
            signal.signal(given, handler)


def _manifest(settled: Settled) -> dict[str, Any]:
    recipe, machine = settled.plan.recipe, settled.machine
    asked = recipe.model
    model = asked.path or f"new {asked.scratch and asked.scratch.architecture}"
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "tunesmith": __version__,
        "versions": library_versions(),
        "machine": {k: v for k, v in vars(machine).items() if k != "has_torch"},
        "model": {"path": model, "base": find_model(model, asked.hub, asked.revision).base if asked.path else None},
        "data": {"files": settled.prepared.files},
        "seed": recipe.seed,
    }


def _record_model(folder: RunFolder, model: Any) -> None:
    """Add to the manifest how large the model is."""
    sizes = [(count_weights(p), p.requires_grad) for p in model.parameters()]
    counted = {
        "parameters": sum(size for size, _ in sizes),
        "trained_parameters": sum(size for size, trains in sizes if trains),
    }
    manifest = folder.read("manifest.json")
    folder.write("manifest.json", {**manifest, "model": {**manifest["model"], **counted}})


def _with_layout(plan: Plan, layout: Any, attention: Any, notices: list[str], eager: str | None) -> dict[str, Any]:
    data = plan.as_data()
    if eager:
        data["settled"]["compile"], data["why"]["compile"] = False, eager
        data["notices"].append(eager)
    data["settled"]["layout"] = layout
    if layout not in ROWS:
        data["settled"]["attention"] = attention.names
        data["why"]["attention"] = attention.why()
    elif plan.layout != layout:
        data["settled"]["attention"] = ["own"]
        data["why"]["attention"] = "rows of one sequence take the attention that the model comes with"
    data["notices"] += notices
    if notices:
        data["why"]["layout"] = notices[0]
    return data
