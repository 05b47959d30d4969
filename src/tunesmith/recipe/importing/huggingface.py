"""transformers' TrainingArguments, which LLaMA-Factory and TRL inherit and axolotl writes: table and rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from tunesmith.optimizers import OPTIMIZERS
from tunesmith.recipe.decay import Decay
from tunesmith.recipe.importing.argument import Argument, all_of, copied, refused, ruled, unneeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.recipe.importing.translation import Translation

_LAYOUT = "how the work is laid out is the plan's, and changes nothing but speed"
_LOADER = "examples are made once and mapped into memory; there is no loader to tune"
_LOGS = "every step's loss, rate and gradient norm are kept in metrics.jsonl, and shown"
_PROCESSES = "torch's own choices; nothing that is learnt depends on them"
_TRACKER = "no tracker is fed; the run's folder has metrics.jsonl and report.html"
_UPLOAD = "nothing is uploaded; send the folder afterwards: hf upload NAME FOLDER"
_SHARDED = "weights are not split over processes yet; leave it out where the model fits one device"
_SAME_LOSS = "the loss does not depend on it: it is always one mean over the whole batch"
_JUDGED = "validation gives one loss over all tokens, and scores of the answers if evaluation.scores names some"

ARGUMENTS: Mapping[str, Argument] = {
    # what is done
    "output_dir": ruled("output", "text"),
    "do_train": ruled("stage", "flag", False),
    "do_eval": unneeded("held-out data, where there is any, is always judged", "flag", False),
    "do_predict": ruled("evaluation.scores", "flag", False),
    "predict_with_generate": ruled("evaluation.scores", "flag", False),
    "resume_from_checkpoint": ruled("", "text"),
    # how long and how fast
    "num_train_epochs": copied("schedule.epochs", "number", 3.0),
    "max_steps": ruled("schedule.steps", "whole", -1),
    "per_device_train_batch_size": ruled("schedule.batch_size", "whole", 8),
    "gradient_accumulation_steps": ruled("schedule.batch_size", "whole", 1),
    "learning_rate": copied("schedule.learning_rate", "number", 5e-5),
    "lr_scheduler_type": ruled("schedule.decay", "text", "linear"),
    "lr_scheduler_kwargs": ruled("schedule.decay_arguments", "group"),
    "warmup_steps": ruled("schedule.warmup", "number", 0),
    "warmup_ratio": ruled("schedule.warmup", "number"),
    "max_grad_norm": copied("schedule.max_gradient_norm", "number", 1.0),
    "optim": ruled("optimizer.type", "text", "adamw_torch_fused"),
    "optim_args": refused("give what the optimizer takes in its own words, such as optimizer.rank=128", "text"),
    "optim_target_modules": unneeded("low-rank optimizers take every matrix of the blocks", "names"),
    "weight_decay": ruled("optimizer.weight_decay", "number", 0.0),
    "adam_beta1": ruled("optimizer.beta1", "number", 0.9),
    "adam_beta2": ruled("optimizer.beta2", "number", 0.999),
    "adam_epsilon": ruled("optimizer.epsilon", "number", 1e-8),
    "label_smoothing_factor": copied("stage.label_smoothing", "number", 0.0, needs="stage=sft|pt"),
    "neftune_noise_alpha": copied("regularization.embedding_noise", "number"),
    **all_of(unneeded(_SAME_LOSS, "flag"), average_tokens_across_devices=True, dataloader_drop_last=False),
    # precision, speed, memory
    "bf16": ruled("engine.precision", "flag", False),
    "fp16": ruled("engine.precision", "flag", False),
    "gradient_checkpointing": copied("engine.gradient_checkpointing", "flag", False),
    "gradient_checkpointing_kwargs": unneeded("both ways of checkpointing give the same gradients", "group"),
    "torch_compile": ruled("engine.compile", "flag", False),
    "use_cpu": ruled("engine.device", "flag", False),
    **all_of(
        unneeded(_LAYOUT),
        torch_compile_backend=None,
        torch_compile_mode=None,
        tf32=None,
        per_device_eval_batch_size=8,
        auto_find_batch_size=False,
        torch_empty_cache_steps=None,
        eval_accumulation_steps=None,
        bf16_full_eval=False,
        fp16_full_eval=False,
        use_cache=False,
        skip_memory_metrics=True,
    ),
    **all_of(
        unneeded("Tunesmith's own loss never holds the whole logit matrix; no kernels to choose"),
        use_liger_kernel=False,
        liger_kernel_config=None,
    ),
    # judging
    "eval_strategy": ruled("evaluation.every", "text", "no"),
    "eval_steps": ruled("evaluation.every", "number"),
    "eval_delay": unneeded("validation begins with the run", "number", 0),
    "eval_on_start": unneeded("the base model is judged beside the tuned one in any case", "flag", False),
    "load_best_model_at_end": ruled("checkpoints.use", "flag", False),
    "metric_for_best_model": ruled("checkpoints.use", "text"),
    "greater_is_better": ruled("checkpoints.use", "flag"),
    "generation_max_length": unneeded("an answer's length is evaluation.generation.max_new_tokens", "whole"),
    "generation_num_beams": unneeded("beams are evaluation.generation.num_beams, at temperature 0", "whole"),
    "generation_config": unneeded("how answers are made is evaluation.generation", "text"),
    **all_of(
        unneeded(_JUDGED),
        prediction_loss_only=False,
        eval_do_concat_batches=True,
        eval_use_gather_object=False,
        include_for_metrics=[],
        batch_eval_metrics=False,
    ),
    # saving
    "save_strategy": ruled("checkpoints.every", "text", "steps"),
    "save_steps": ruled("checkpoints.every", "number", 500),
    "save_total_limit": copied("checkpoints.keep", "whole"),
    "save_only_model": unneeded("checkpoints are always complete, so that a run can go on exactly", "flag", False),
    "save_on_each_node": unneeded("one process writes the run's folder", "flag", False),
    "enable_jit_checkpoint": unneeded("a stopped run (SIGTERM) saves after its step", "flag", False),
    "ignore_data_skip": unneeded("going on needs no replay of the data", "flag", False),
    "restore_callback_states_from_checkpoint": unneeded("a checkpoint holds all there is", "flag", False),
    **all_of(
        refused(_UPLOAD),
        push_to_hub=False,
        hub_model_id=None,
        hub_private_repo=None,
        hub_revision=None,
    ),
    **all_of(
        unneeded("it matters to push_to_hub only"),
        hub_strategy="every_save",
        hub_always_push=False,
    ),
    "hub_token": unneeded("a token belongs in no recipe; log in: hf auth login", "text"),
    # what is told
    **all_of(
        unneeded(_LOGS),
        logging_strategy="steps",
        logging_steps=500,
        logging_first_step=False,
        logging_nan_inf_filter=True,
        logging_dir=None,
        log_on_each_node=True,
        log_level="passive",
        log_level_replica="warning",
        disable_tqdm=None,
        include_num_input_tokens_seen="no",
    ),
    **all_of(
        unneeded(_TRACKER),
        report_to="none",
        run_name=None,
        project="huggingface",
        trackio_space_id=None,
        trackio_bucket_id=None,
        trackio_static_space_id=None,
    ),
    # chance
    "seed": copied("seed", "whole", 42),
    "data_seed": unneeded("seed orders the data too", "whole"),
    "full_determinism": unneeded(
        "a seed gives the same run again; only GPU kernels may round otherwise", "flag", False
    ),
    "train_sampling_strategy": ruled("", "text", "random"),
    "sortish_sampler": refused(
        "examples come in random order: sorting by length changes what a batch is", "flag", False
    ),
    "length_column_name": unneeded("lengths are counted", "text", "length"),
    # loaders and processes
    **all_of(
        unneeded(_LOADER),
        dataloader_num_workers=0,
        dataloader_pin_memory=True,
        dataloader_persistent_workers=False,
        dataloader_prefetch_factor=None,
        remove_unused_columns=True,
        label_names=None,
    ),
    **all_of(
        unneeded(_PROCESSES),
        local_rank=-1,
        ddp_find_unused_parameters=None,
        ddp_bucket_cap_mb=None,
        ddp_broadcast_buffers=None,
        ddp_static_graph=None,
        ddp_backend=None,
        ddp_timeout=1800,
    ),
    **all_of(
        refused(_SHARDED),
        fsdp=None,
        fsdp_config=None,
        deepspeed=None,
        accelerator_config=None,
        parallelism_config=None,
    ),
    "debug": unneeded("a run that breaks keeps its batch, and says at which step", "text", ""),
}

# what transformers has no more, but older files and tutorials say
OLD_ARGUMENTS: Mapping[str, Argument] = {
    **all_of(
        unneeded(_LAYOUT),
        half_precision_backend="auto",
        fp16_opt_level="O1",
        jit_mode_eval=False,
        split_batches=None,
        dispatch_batches=None,
    ),
    "fsdp_transformer_layer_cls_to_wrap": refused(_SHARDED),
    "save_safetensors": unneeded("weights are always safetensors", "flag", True),
    "group_by_length": unneeded("padding is not computed, so nothing is won by sorting", "flag", False),
    "include_tokens_per_second": unneeded(_LOGS, "flag", False),
    "push_to_hub_token": unneeded("a token belongs in no recipe; log in: hf auth login", "text"),
    "past_index": unneeded("no part of training a language model", "whole", -1),
}
OLD_NAMES: Mapping[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
}

# transformers' name -> ours; those that are AdamW in another library's code are AdamW
_OPTIMIZERS: Mapping[str, str] = {
    **dict.fromkeys(
        ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla"),
        "adamw",
    ),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit"), "adamw_8bit"),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), "paged_adamw"),
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit"), "lion"),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), "lion_8bit"),
    "sgd": "sgd",
    "schedule_free_adamw": "schedule_free",
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit"), "galore"),
    "apollo_adamw": "apollo",
    # axolotl's
    "muon": "muon",
    "came_pytorch": "came",
}
_NO_ADAM = ("adafactor", "sgd", "came")  # transformers does not hand Adam's settings to these


def output(t: Translation) -> None:
    """Say where the run is written."""
    if t.said("output_dir"):
        t.put("output", t.value("output_dir"), "output_dir")
    else:
        t.put("output", "runs/imported", note="no output_dir was given")
    if t.said("resume_from_checkpoint") and t.value("resume_from_checkpoint") not in ("false", "False"):
        where = t.value("output_dir") or "RUN"
        t.explain(
            "resume_from_checkpoint",
            f"another program's checkpoint cannot go on here; a run of Tunesmith does: tunesmith resume {where}",
        )


def schedule(t: Translation) -> None:
    """Translate length, batch, decay and warm-up; the rate is copied."""
    if t.value("max_steps") > 0:
        t.put("schedule.steps", t.value("max_steps"), "max_steps")
    one, accumulated = t.value("per_device_train_batch_size"), t.value("gradient_accumulation_steps")
    note = f"{one} a device × {accumulated} accumulated"
    note += f" × {t.processes} processes" if t.processes > 1 else ""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    t.put("schedule.batch_size", one * accumulated * t.processes, *names, note=note)
    decay = t.value("lr_scheduler_type")
    warmup = t.value("warmup_steps") or t.value("warmup_ratio") or 0
    if decay == "constant" and warmup:
        name = "warmup_steps" if t.value("warmup_steps") else "warmup_ratio"
        t.explain(name, f"the scheduler constant ignores it in {t.program.title}, too (constant_with_warmup does not)")
        warmup = 0
    known = {**{name: name for name in get_args(Decay)}, "constant_with_warmup": "constant"}
    if decay in known:
        t.put("schedule.decay", known[decay], "lr_scheduler_type")
        if t.value("lr_scheduler_kwargs"):
            t.put("schedule.decay_arguments", t.value("lr_scheduler_kwargs"), "lr_scheduler_kwargs")
    else:
        t.refuse("lr_scheduler_type", f"{decay} has no equal", f"one of {', '.join(known)}")
    t.put("schedule.warmup", warmup, "warmup_steps", "warmup_ratio")
    if t.value("train_sampling_strategy") not in ("random", None):
        t.explain(
            "train_sampling_strategy", "examples come in random order; padding is not computed, so nothing is lost"
        )


def optimizer(t: Translation, chosen: str = "", *settings: tuple[str, Any, str]) -> None:
    """Translate the optimizer: *chosen* by arguments of the program's own, with its (setting, value, argument)."""
    asked = t.value("optim")
    name = chosen or _OPTIMIZERS.get(asked, "")
    if not name:
        t.refuse("optim", f"{asked} has no equal", f"one of {', '.join(OPTIMIZERS.names())}, as optimizer=NAME")
        return
    if chosen and t.said("optim"):
        t.explain("optim", f"{chosen} takes its place")
    t.put("optimizer.type", name, *(() if chosen else ("optim",)))
    if asked == "galore_adamw_8bit" or (name == "galore" and "8bit" in asked):
        t.put("optimizer.bits", 8, "optim")
    known = OPTIMIZERS.get(name).model_fields
    if name == "sgd":
        t.put("optimizer.momentum", 0.0, note="transformers' sgd has none")
    for argument, setting in (
        ("weight_decay", "weight_decay"),
        ("adam_beta1", "beta1"),
        ("adam_beta2", "beta2"),
        ("adam_epsilon", "epsilon"),
    ):
        if setting in known and (setting == "weight_decay" or name not in _NO_ADAM):
            t.put(f"optimizer.{setting}", t.value(argument), argument)
        elif t.said(argument):
            t.explain(argument, f"{name} does not take it, in {t.program.title} neither")
    for setting, value, argument in settings:
        t.put(f"optimizer.{setting}", value, argument)


def engine(t: Translation) -> None:
    """Translate precision and device."""
    if t.value("bf16") and t.value("fp16"):
        t.refuse("fp16", "bf16 and fp16 exclude each other", "keep one of them", fatal=True)
    elif t.value("bf16"):
        t.put("engine.precision", "bfloat16", "bf16")
    elif t.value("fp16"):
        t.put("engine.precision", "float16", "fp16")
    if t.value("use_cpu"):
        t.put("engine.device", "cpu", "use_cpu")
    if t.value("torch_compile"):
        t.put("engine.compile", True, "torch_compile")


def evaluation(t: Translation) -> None:
    """Translate when the model is judged, what is kept, and which weights the run ends with."""
    held_out = bool({"validation", "validation_share"} & set(t.values.get("data", {})))
    every = t.value("eval_steps") or (t.value("logging_steps") if t.said("logging_steps") else None)
    if t.value("eval_strategy") == "steps" or (t.said("eval_steps") and not t.said("eval_strategy")):
        _every(t, "evaluation.every", every, "eval_strategy", "eval_steps")
    elif t.said("eval_strategy"):
        if t.value("eval_strategy") == "no" and not held_out:
            t.remarks["eval_strategy"] = "there is nothing to judge on"
        else:
            t.explain("eval_strategy", "held-out data is judged about ten times a run; evaluation.every says otherwise")
        if t.said("eval_steps"):
            t.remarks["eval_steps"] = "does nothing without eval_strategy: steps"
    _saving(t)
    metric = t.value("metric_for_best_model")
    if metric not in (None, "loss", "eval_loss") or t.value("greater_is_better"):
        name = "greater_is_better" if metric in (None, "loss", "eval_loss") else "metric_for_best_model"
        t.refuse(name, "the best checkpoint is the one of the lowest validation loss")
    if held_out and not t.value("load_best_model_at_end"):
        t.put("checkpoints.use", "last", "load_best_model_at_end")
    if t.value("predict_with_generate") and held_out:
        t.put("evaluation.scores", ["bleu", "rouge"], "predict_with_generate")


def _saving(t: Translation) -> None:
    if t.value("save_strategy") == "steps":
        if t.said("save_steps") or t.said("save_strategy"):
            _every(t, "checkpoints.every", t.value("save_steps"), "save_steps", "save_strategy")
    else:
        words = {"no": "one is kept at the end of each epoch all the same, to go on from", "best": "the best stays"}
        why = words.get(t.value("save_strategy"), "which is usual: one at the end of each epoch")
        t.explain("save_strategy", why)
        if t.said("save_steps"):
            t.remarks["save_steps"] = "does nothing without save_strategy: steps"


def _every(t: Translation, path: str, steps: float | None, *names: str) -> None:
    if steps is not None and 0 < steps < 1:
        number = next(name for name in names if t.said(name))
        t.refuse(number, f"{steps:g} of all steps is not a number of steps", f"say how many, as {path}=STEPS")
    elif steps:
        t.put(path, int(steps), *names)
