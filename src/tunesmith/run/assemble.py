"""Assemble what a plan describes: the model with its method, and the loop that trains it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.engine.pack import ROWS
from tunesmith.models.heads import filling_token, head_name
from tunesmith.models.load import load_model
from tunesmith.run.compiling import compiled_mark
from tunesmith.run.continuing import apply_method

if TYPE_CHECKING:
    from tunesmith.core.events import Listener
    from tunesmith.engine.loop import TrainingLoop
    from tunesmith.engine.model import PackModel
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.folder import RunFolder
    from tunesmith.run.prepared import Prepared
    from tunesmith.run.settle import Settled


def assemble_model(settled: Settled, accelerator: Any) -> PackModel:
    """Load the model, apply the method, and make ready what acts on its passes."""
    from tunesmith.engine.model import PackModel

    recipe = settled.plan.recipe
    packed = PackModel(*_ready_model(settled, accelerator.device), settled.plan.attention)
    packed.keeps_products = recipe.engine.gradient_checkpointing == "selective"
    _disturb(recipe, packed)
    _begin(settled, packed, accelerator)
    return packed


def _ready_model(settled: Settled, device: Any) -> tuple[Any, Any]:
    """Load the model, apply the method, keep what trains in float32; return it and the transformers model inside."""
    import torch

    from tunesmith.engine.activations import checkpoint_blocks

    plan, recipe = settled.plan, settled.plan.recipe
    # frozen weights may be short; weights that learn lose small updates in bfloat16 (ENGINE_FACTS: 4.59 against 3.90)
    kept = getattr(torch, recipe.engine.weights)
    dtype = getattr(torch, plan.precision) if recipe.method.adds_adapter else kept
    base: Any = load_model(recipe.model, settled.config, dtype, recipe.seed, recipe.stage.head)
    base.config.use_cache = False
    torch.manual_seed(recipe.seed)
    model: Any = apply_method(recipe, base)
    if (reads := head_name(base)) is not None:
        # which token transformers takes for the last one
        base.config.get_text_config().pad_token_id = filling_token(settled.prepared.template.tokenizer)
        if not recipe.method.adds_adapter:
            base.get_submodule(reads).requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(kept)
    if recipe.engine.gradient_checkpointing:
        checkpoint_blocks(base, selective=recipe.engine.gradient_checkpointing == "selective")
    return model.to(device), recipe.method.base_model(model)


def _disturb(recipe: Recipe, packed: Any) -> None:
    """Set up what acts on training passes alone."""
    from tunesmith.engine.regularization import Disturbance

    wanted = recipe.regularization
    if wanted.embedding_noise or wanted.layer_dropout:
        noise, dropout = wanted.embedding_noise, wanted.layer_dropout
        packed.disturb(Disturbance(packed.base, embedding_noise=noise, layer_dropout=dropout))


def _begin(settled: Settled, packed: Any, accelerator: Any) -> None:
    """Let the method look at the data, if it wants to, before the first step."""
    import torch
    from accelerate.utils import set_seed

    from tunesmith.engine.example import Example
    from tunesmith.engine.model import pack_arguments
    from tunesmith.engine.pack import build_packs
    from tunesmith.methods import Start

    examples = settled.prepared.train.examples

    def run_example(index: int) -> None:
        for sequence in examples[index].sequences:
            (pack,) = build_packs([Example((sequence,))], "padded", 1)  # a row of one sequence has no filling
            with torch.no_grad(), accelerator.autocast():
                packed(**pack_arguments(pack.to(accelerator.device)))

    def length(index: int) -> int:
        return max(len(sequence) for sequence in examples[index].sequences)

    set_seed(settled.plan.recipe.seed)
    start = Start(settled.plan.steps, len(examples), length, run_example)
    settled.plan.recipe.method.begin(packed.model, start)


def compile_blocks(settled: Settled, packed: Any, layout: Any, accelerator: Any, emit: Listener) -> str | None:
    """Compile the blocks and remember that this was done here; return why they stay eager, if they do."""
    from tunesmith.engine.compiled import try_compiled

    plan, prepared = settled.plan, settled.prepared
    if layout in ROWS or packed.attention.names[0] != "segments":
        return "only packs with segment-wise attention are compiled: eager blocks instead"
    emit({"kind": "notice", "text": "compiling the transformer blocks"})
    eager = try_compiled(packed, plan.recipe.stage, prepared.train.examples, layout, accelerator)
    if eager is None:
        mark = compiled_mark(plan, settled.config)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return eager


def _check_teacher(packed: Any, *, prepared: Prepared, layout: Any, accelerator: Any) -> None:
    """Raise :class:`UserError` where a teacher beside the model is wrong in the layout that the model goes through."""
    from tunesmith.engine.check import choose_layout

    if packed.teacher is None:
        return
    teacher = packed.teacher.model
    fitting, notices = choose_layout(teacher, prepared.train.examples, layout, accelerator)
    teacher.eval()
    if fitting != layout:
        raise UserError(f"stage.teacher: {notices[-1]}; set engine.layout: {fitting} for both")


def assemble_loop(settled: Settled, packed: Any, accelerator: Any, folder: RunFolder, layout: Any) -> TrainingLoop:
    """Return the loop that trains *packed*, with its optimizer and schedule."""
    from tunesmith.engine.loop import TrainingLoop
    from tunesmith.engine.loop_settings import LoopSettings
    from tunesmith.engine.schedule import make_schedule
    from tunesmith.run.rollouts import make_rollouts

    plan, recipe = settled.plan, settled.plan.recipe
    schedule = recipe.schedule
    recipe.stage.begin(packed)
    _check_teacher(packed, prepared=settled.prepared, layout=layout, accelerator=accelerator)
    # what belongs to the method is the same, whatever the optimizer
    chosen = recipe.optimizer.model_copy(update=recipe.method.optimizer_settings())
    optimizer = chosen.build(packed.model, plan.learning_rate)
    rates = make_schedule(optimizer, schedule.decay, plan.steps, schedule.warmup, schedule.decay_arguments)
    settings = LoopSettings(
        steps=plan.steps,
        batch_size=schedule.batch_size,
        seed=recipe.seed,
        layout=layout,
        tokens_per_pass=plan.tokens_per_pass,
        max_gradient_norm=schedule.max_gradient_norm,
        evaluate_every=plan.evaluate_every if recipe.evaluation.examples or not recipe.stage.reward_scores else None,
        patience=recipe.evaluation.patience,
        minimum_gain=recipe.evaluation.minimum_gain,
        checkpoint_every=plan.checkpoint_every,
        keep_checkpoints=recipe.checkpoints.keep,
        method=recipe.method,
        optimizer_in_backward=recipe.engine.optimizer_in_backward,
        activation_offload=recipe.engine.activation_offload,
        ema_decay=schedule.ema_decay,
        experience=make_rollouts(settled, packed, accelerator, layout) if recipe.stage.online else None,
    )
    return TrainingLoop(packed, recipe.stage, optimizer, rates, accelerator, settings, folder.path)
