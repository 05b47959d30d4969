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
from tunesmith.models.fingerprint import remember_base
from tunesmith.models.load import find_model, load_model
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.evaluate import Contestant, Questions, evaluation_report
from tunesmith.run.folder import RunFolder
from tunesmith.run.machine import library_versions
from tunesmith.run.plan import Plan
from tunesmith.run.report import write_report
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
    from tunesmith.engine.model import PackModel

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
    model, base = _ready_model(settled, accelerator.device)
    packed = PackModel(model, base)
    set_seed(recipe.seed)
    layout, notices = choose_layout(packed, prepared.train.examples, plan.layout, accelerator)
    notices += check_gradients(packed, recipe.stage, prepared.train.examples, layout, accelerator)
    for text in notices:
        emit({"kind": "notice", "text": text})
    if accelerator.is_main_process:
        counted = {"parameters": _count(model), "trained_parameters": _count(model, training=True)}
        manifest = folder.read("manifest.json")
        folder.write("manifest.json", {**manifest, "model": {**manifest["model"], **counted}})
        folder.write("plan.json", _with_layout(plan, layout, notices))
    loop = _loop(settled, packed, accelerator, folder, layout)
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
        _finish(settled, loop, layout, emit)
    if accelerator.is_main_process:
        write_report(folder.path)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return outcome


def _ready_model(settled: Settled, device: Any) -> tuple[Any, Any]:
    """Load the model, apply the method, keep what trains in float32; return it and the transformers model inside."""
    import torch

    plan, recipe = settled.plan, settled.plan.recipe
    # frozen weights may be short; weights that learn lose small updates in bfloat16 (ENGINE_FACTS: 4.59 against 3.90)
    dtype = getattr(torch, plan.precision) if recipe.method.adds_adapter else torch.float32
    base = load_model(recipe.model, settled.config, dtype, recipe.seed)
    base.config.use_cache = False
    torch.manual_seed(recipe.seed)
    model: Any = recipe.method.apply(base)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if recipe.engine.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device), recipe.method.base_model(model)


def _loop(settled: Settled, packed: Any, accelerator: Any, folder: RunFolder, layout: Any) -> TrainingLoop:
    from tunesmith.engine.loop import LoopSettings, TrainingLoop, make_schedule

    plan, recipe = settled.plan, settled.plan.recipe
    schedule = recipe.schedule
    optimizer = recipe.optimizer.build(packed.model, plan.learning_rate)
    rates = make_schedule(optimizer, schedule.decay, plan.steps, schedule.warmup, schedule.decay_arguments)
    settings = LoopSettings(
        steps=plan.steps,
        batch_size=schedule.batch_size,
        seed=recipe.seed,
        layout=layout,
        tokens_per_pass=plan.tokens_per_pass,
        max_gradient_norm=schedule.max_gradient_norm,
        evaluate_every=plan.evaluate_every,
        patience=recipe.evaluation.patience,
        minimum_gain=recipe.evaluation.minimum_gain,
        checkpoint_every=plan.checkpoint_every,
        keep_checkpoints=recipe.checkpoints.keep,
    )
    return TrainingLoop(packed, recipe.stage, optimizer, rates, accelerator, settings, folder.path)


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


def _finish(settled: Settled, loop: TrainingLoop, layout: Any, emit: Listener) -> None:
    """Choose the weights, judge them against the base, and save them."""
    from tunesmith.engine.checkpoint import load_weights

    recipe, folder, progress = settled.plan.recipe, RunFolder(loop.folder), loop.progress
    best = progress.best_step
    if recipe.checkpoints.use == "best" and best is not None and best != progress.step:
        load_weights(folder.checkpoints / f"step-{best:08d}", loop.inner.model)
        emit({"kind": "notice", "text": f"keeping the weights of step {best}, whose validation loss was lowest"})
    if loop.accelerator.is_main_process:
        # the weights come last: a run that is killed while it is judged can still be resumed
        if settled.prepared.validation is not None:
            folder.write("evaluation.json", _judge(settled, loop, layout, emit))
        save_weights(settled, loop.inner.model, folder)


def save_weights(settled: Settled, model: Any, folder: RunFolder) -> None:
    """Write what was trained with its tokenizer, template and stop tokens, in one rename."""
    from transformers import GenerationConfig

    from tunesmith.core.files import whole_folder

    recipe, template = settled.plan.recipe, settled.prepared.template
    base = recipe.method.base_model(model)
    # an adapter belongs to what it was trained on, which may itself be an adapter
    start = Path(find_model(recipe.model.path).weights) if recipe.model.path else None
    on = start.resolve() if recipe.method.adds_adapter and start and start.is_dir() else None
    if on is not None:
        for config in model.peft_config.values():
            config.base_model_name_or_path = str(on)
    generation = base.generation_config or GenerationConfig()
    generation.eos_token_id = list(template.stop_ids) or None
    with whole_folder(folder.weights) as partial:
        recipe.method.save(model, partial)
        if on is not None:
            remember_base(partial, on)
        template.tokenizer.save_pretrained(partial)
        generation.save_pretrained(partial)


def _judge(settled: Settled, loop: TrainingLoop, layout: Any, emit: Listener) -> dict[str, Any]:
    """Return the evaluation of base and tuned model on the validation data."""
    recipe, prepared = settled.plan.recipe, settled.prepared
    assert prepared.validation is not None
    conversations = prepared.held_out
    model: Any = loop.inner.model
    split = f"{recipe.data.validation_share:.0%} of the training data"
    questions = Questions(
        conversations=conversations,
        source=", ".join(s.path for s in recipe.data.validation) or split,
        answered=recipe.evaluation.examples,
        generation=recipe.evaluation.generation,
        limit=recipe.data.max_tokens,
        seed=recipe.seed,
    )
    emit({"kind": "notice", "text": f"evaluating on {len(conversations)} held-out conversations"})
    tuned = Contestant(model, prepared.template, layout)
    judged = {"tuned": tuned.judge(questions, recipe.stage, emit)}
    if recipe.method.adds_adapter:
        with model.disable_adapter():
            judged = {"base": tuned.judge(questions, recipe.stage, emit), **judged}
    elif recipe.model.scratch is None:
        import torch

        base: Any = load_model(recipe.model, settled.config, torch.float32, recipe.seed)
        base = base.to(model.device)
        before = Contestant(base, prepared.template, layout)
        judged = {"base": before.judge(questions, recipe.stage, emit), **judged}
    return evaluation_report(judged, questions, recipe.evaluation.scores)


def _count(model: Any, *, training: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not training)


def _with_layout(plan: Plan, layout: Any, notices: list[str]) -> dict[str, Any]:
    data = plan.as_data()
    data["settled"]["layout"] = layout
    data["notices"] += notices
    if notices:
        data["why"]["layout"] = notices[0]
    return data


def _manifest(settled: Settled) -> dict[str, Any]:
    recipe, machine = settled.plan.recipe, settled.machine
    model = recipe.model.path or f"new {recipe.model.scratch and recipe.model.scratch.architecture}"
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "tunesmith": __version__,
        "versions": library_versions(),
        "machine": {k: v for k, v in vars(machine).items() if k != "has_torch"},
        "model": {"path": model, "base": find_model(model).base if recipe.model.path else None},
        "data": {"files": settled.prepared.files},
        "seed": recipe.seed,
    }
