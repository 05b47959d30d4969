"""Finish a run: choose the weights, judge them against the base, and save them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.models.fingerprint import remember_base
from tunesmith.models.load import changes_config, load_model, start_place
from tunesmith.models.quantized_base import TrainedOn, remember_quantization
from tunesmith.run.evaluate import Contestant, Questions, evaluation_report
from tunesmith.run.folder import RunFolder
from tunesmith.run.head_evaluation import RewardJudge, evaluate_head
from tunesmith.run.prepare import read_data
from tunesmith.scoring import prepare_scores

if TYPE_CHECKING:
    from tunesmith.core.events import Listener
    from tunesmith.engine.loop import TrainingLoop
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.settle import Settled


def finish(settled: Settled, loop: TrainingLoop, layout: Any, emit: Listener) -> None:
    """Choose the weights, judge them against the base, and save them."""
    from tunesmith.engine.averaging import mean_weights
    from tunesmith.engine.checkpoint import list_checkpoints, load_weights, put_weights

    recipe, folder, progress = settled.plan.recipe, RunFolder(loop.folder), loop.progress
    best = progress.best_step
    with loop.evaluating():
        if recipe.checkpoints.use == "best" and best is not None and best != progress.step:
            load_weights(folder.checkpoints / f"step-{best:08d}", loop.inner.model)
            why = "held-out reward was highest" if recipe.stage.reward_scores else "validation loss was lowest"
            emit({"kind": "notice", "text": f"keeping the weights of step {best}, whose {why}"})
        if recipe.checkpoints.use == "average":
            kept = list_checkpoints(folder.checkpoints)
            put_weights(mean_weights([path for _, path in kept]), loop.inner.model, folder.checkpoints)
            steps = ", ".join(str(step) for step, _ in kept)
            text = f"keeping the mean of the weights of steps {steps}"
            if len(kept) == 1:
                text = f"checkpoints.use: average found no checkpoint but that of step {steps}; set checkpoints.every"
            emit({"kind": "notice", "text": text})
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
    with whole_folder(folder.weights) as partial:
        recipe.stage.save(model, partial)
        save_trained(recipe, model, partial)
        if recipe.model.quantization is not None:
            made_up = recipe.method.makes_up_for_quantization
            remember_quantization(partial, TrainedOn(recipe.model.quantization, made_up))
        # what a head's outputs are stands in the configuration
        if recipe.method.adds_adapter and (changes_config(recipe.model) or recipe.stage.head is not None):
            base.config.save_pretrained(partial)
        template.tokenizer.save_pretrained(partial)
        if recipe.stage.head is None:  # a model that gives numbers stops at nothing
            generation = base.generation_config or GenerationConfig()
            generation.eos_token_id = list(template.stop_ids) or None
            generation.save_pretrained(partial)


def save_trained(recipe: Recipe, model: Any, folder: Path) -> None:
    """Write what was trained to *folder*; if that is an adapter, with the weights that it belongs to."""
    # it belongs to what it was trained on, which may itself be an adapter
    start = Path(start_place(recipe.model).weights) if recipe.model.path else None
    on = start.resolve() if recipe.method.adds_adapter and start and start.is_dir() else None
    if on is not None:
        for config in model.peft_config.values():
            config.base_model_name_or_path = str(on)
    recipe.method.save(model, folder)
    if on is not None:
        remember_base(folder, on)


def _judge(settled: Settled, loop: TrainingLoop, layout: Any, emit: Listener) -> dict[str, Any]:
    """Return the evaluation of base and tuned model on the validation data; of the tuned one held to a form, too."""
    recipe, prepared = settled.plan.recipe, settled.prepared
    assert prepared.validation is not None
    conversations = prepared.held_out
    model: Any = loop.inner.model
    split = f"{recipe.data.validation_share:.0%} of the training data"
    source = ", ".join(s.path for s in recipe.data.validation) or split
    if recipe.stage.head is not None:
        return evaluate_head(settled, loop, layout, source, emit)
    questions = Questions(
        conversations=conversations,
        source=source,
        answered=recipe.evaluation.examples,
        generation=recipe.evaluation.generation,
        limit=recipe.data.max_tokens,
        seed=recipe.seed,
        examples=prepared.validation.examples if recipe.stage.reference_model() is not None else None,
    )
    emit({"kind": "notice", "text": f"evaluating on {len(conversations)} held-out conversations"})
    # what a stage rewarded is what it is judged by, unless the recipe says what else
    scores = recipe.evaluation.scores or recipe.stage.reward_scores
    load_judge = partial(RewardJudge, device=str(loop.accelerator.device.type))
    prepare_scores(scores, lambda: read_data(recipe).train_conversations, load_judge)
    attention = loop.inner.attention.names
    tuned = Contestant(model, prepared.template, layout, attention)
    with loop.accelerator.autocast():  # what trains is of a longer type than the rest
        judged = {"tuned": tuned.judge(questions.free, recipe.stage, emit)}
    if recipe.method.adds_adapter and recipe.method.keeps_base:
        with model.disable_adapter(), loop.accelerator.autocast():
            judged = {"base": tuned.judge(questions.free, recipe.stage, emit), **judged}
    elif recipe.model.scratch is None:
        own = recipe.method.base_model(model).dtype
        base: Any = load_model(recipe.model, settled.config, own, recipe.seed)
        base = base.to(model.device)
        before = Contestant(base, prepared.template, layout, attention)
        with loop.accelerator.autocast():
            judged = {"base": before.judge(questions.free, recipe.stage, emit), **judged}
    if (constraint := recipe.evaluation.generation.constraint) is not None:
        with loop.accelerator.autocast():
            held = tuned.constrained(questions, judged["tuned"], emit)
        judged[f"tuned + {constraint.type_name()}"] = held
    return evaluation_report(judged, questions, scores, perplexity=recipe.stage.has_perplexity)
