"""axolotl's settings for supervised fine-tuning, those with a clear equal; any other is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.recipe.importing import axolotl_data, blocks, huggingface
from tunesmith.recipe.importing.argument import Argument, Program, all_of, copied, refused, ruled, same_as, unneeded
from tunesmith.recipe.importing.llamafactory import LLAMAFACTORY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.recipe.importing.translation import Translation

_BASE = LLAMAFACTORY.arguments

_ARGUMENTS: Mapping[str, Argument] = {
    "base_model": same_as(_BASE, "model_name_or_path"),
    "revision_of_model": same_as(_BASE, "model_revision"),
    "trust_remote_code": same_as(_BASE, "trust_remote_code"),
    **all_of(
        unneeded("the model's own configuration says it"),
        model_type=None,
        tokenizer_type=None,
        is_falcon_derived_model=None,
        is_llama_derived_model=None,
        is_mistral_derived_model=None,
        is_qwen_derived_model=None,
        tokenizer_use_fast=None,
        tokenizer_legacy=None,
        tokenizer_save_jinja_files=None,
        strict=None,
        resize_token_embeddings_to_32x=None,
        mean_resizing_embeddings=None,
    ),
    **all_of(
        unneeded("a loss or gradient that is not finite stops the run; watch others with evaluation.patience"),
        loss_watchdog_threshold=None,
        loss_watchdog_patience=None,
    ),
    "remove_unused_columns": unneeded("columns are named by the format", "flag"),
    "special_tokens": ruled("", "group"),
    "tokens": same_as(_BASE, "add_tokens"),
    "load_in_8bit": ruled("model.quantization", "flag", False, needs="adapter"),
    "load_in_4bit": ruled("model.quantization", "flag", False, needs="adapter"),
    "rl": ruled("stage", "text"),
    # data
    "datasets": ruled("data.train", "any"),
    "test_datasets": ruled("data.validation", "any"),
    "val_set_size": ruled("data.validation_share", "number", 0.0),
    "sequence_len": copied("data.max_tokens", "whole", 512),
    "excess_length_strategy": ruled("data.too_long", "text", "drop"),
    "train_on_inputs": copied("stage.train_on_prompt", "flag", False),
    "chat_template": ruled("template", "text"),
    "chat_template_jinja": refused("save it in a .jinja file: template=FILE", "text"),
    "chat_template_kwargs": copied("template.arguments", "group"),
    "default_system_message": refused("write the system message into the rows", "text"),
    "shuffle_merged_datasets": refused("examples come in random order", "flag", True),
    **all_of(
        unneeded("examples are made with all cores, kept, and mapped into memory"),
        dataset_prepared_path=None,
        dataset_processes=None,
        dataset_num_proc=None,
        dataset_keep_in_memory=None,
        streaming=None,
        hf_use_auth_token=None,
    ),
    **all_of(
        unneeded("sequences are always packed, and none sees another"),
        sample_packing=None,
        eval_sample_packing=None,
        pad_to_sequence_len=None,
        sample_packing_group_size=None,
        sample_packing_bin_size=None,
        group_by_length=None,
        pad_to_multiple_of=None,
    ),
    # what trains
    "adapter": ruled("method", "text"),
    "lora_model_dir": same_as(_BASE, "adapter_name_or_path"),
    "lora_r": same_as(_BASE, "lora_rank", needs="adapter"),
    "lora_alpha": same_as(_BASE, "lora_alpha", default=16, needs="adapter"),
    "lora_dropout": same_as(_BASE, "lora_dropout", needs="adapter"),
    "lora_target_linear": ruled("method.targets", "flag", needs="adapter"),
    "lora_target_modules": ruled("method.targets", "any", needs="adapter"),
    "lora_modules_to_save": same_as(_BASE, "additional_target", needs="adapter"),
    "lora_rank_pattern": copied("method.rank_pattern", "group", needs="adapter"),
    "lora_alpha_pattern": copied("method.alpha_pattern", "group", needs="adapter"),
    "peft_layers_to_transform": copied("method.layers", "any", needs="adapter"),
    "lora_fan_in_fan_out": unneeded("the layer says it", "flag", False),
    "peft_use_dora": same_as(_BASE, "use_dora", needs="adapter"),
    "peft_use_rslora": same_as(_BASE, "use_rslora", needs="adapter"),
    "peft_init_lora_weights": refused("name the method: pissa, olora, eva, …", "any", True, needs="adapter"),
    "loraplus_lr_ratio": same_as(_BASE, "loraplus_lr_ratio", needs="adapter"),
    "loraplus_lr_embedding": same_as(_BASE, "loraplus_lr_embedding"),
    "unfrozen_parameters": ruled("method.also", "names"),
    # how long and how fast
    "micro_batch_size": same_as(_BASE, "per_device_train_batch_size", default=1),
    "gradient_accumulation_steps": same_as(_BASE, "gradient_accumulation_steps"),
    "num_epochs": same_as(_BASE, "num_train_epochs", default=1.0),
    "max_steps": same_as(_BASE, "max_steps"),
    "learning_rate": same_as(_BASE, "learning_rate", default=None),
    "lr_scheduler": same_as(_BASE, "lr_scheduler_type", default="cosine"),
    "lr_scheduler_kwargs": same_as(_BASE, "lr_scheduler_kwargs"),
    "cosine_min_lr_ratio": ruled("schedule.decay_arguments", "number"),
    "warmup_steps": same_as(_BASE, "warmup_steps"),
    "warmup_ratio": same_as(_BASE, "warmup_ratio", default=0.03),
    "optimizer": same_as(_BASE, "optim"),
    "weight_decay": same_as(_BASE, "weight_decay"),
    "adam_beta1": same_as(_BASE, "adam_beta1"),
    "adam_beta2": same_as(_BASE, "adam_beta2"),
    "adam_epsilon": same_as(_BASE, "adam_epsilon"),
    "max_grad_norm": same_as(_BASE, "max_grad_norm"),
    "neftune_noise_alpha": same_as(_BASE, "neftune_noise_alpha"),
    "seed": same_as(_BASE, "seed"),
    # precision, speed, memory
    "bf16": ruled("engine.precision", "text", "false"),
    "fp16": ruled("engine.precision", "text", "false"),
    "gradient_checkpointing": ruled("engine.gradient_checkpointing", "text", "false"),
    "activation_offloading": ruled("engine.activation_offload", "text", "false"),
    "torch_compile": ruled("engine.compile", "text", "false"),
    "plugins": ruled("", "names"),
    **all_of(
        unneeded("how the work is laid out is the plan's, and changes nothing but speed"),
        gradient_checkpointing_kwargs=None,
        tf32=None,
        eval_batch_size=None,
        flash_attention=None,
        sdp_attention=None,
        flex_attention=None,
        xformers_attention=None,
        eager_attention=None,
        attn_implementation=None,
        lora_mlp_kernel=None,
        lora_qkv_kernel=None,
        lora_o_kernel=None,
        liger_rope=None,
        liger_rms_norm=None,
        liger_glu_activation=None,
        liger_layer_norm=None,
        liger_fused_linear_cross_entropy=None,
        cut_cross_entropy=None,
        chunked_cross_entropy=None,
        low_cpu_mem_usage=None,
        embeddings_skip_upcast=None,
        local_rank=None,
        ddp_timeout=None,
        dataloader_num_workers=None,
        dataloader_pin_memory=None,
        dataloader_prefetch_factor=None,
    ),
    **all_of(
        refused("weights are not split over processes yet; leave it out where the model fits one device"),
        deepspeed=None,
        fsdp=None,
        fsdp_config=None,
        fsdp_version=None,
        tensor_parallel_size=None,
        context_parallel_size=None,
        sequence_parallel_degree=None,
        dp_shard_size=None,
    ),
    # judging, saving, telling
    "output_dir": same_as(_BASE, "output_dir", default="./model-out"),
    "resume_from_checkpoint": same_as(_BASE, "resume_from_checkpoint"),
    "auto_resume_from_checkpoints": unneeded("a stopped run goes on: tunesmith resume RUN", "flag"),
    "eval_strategy": same_as(_BASE, "eval_strategy"),
    "eval_steps": same_as(_BASE, "eval_steps"),
    "evals_per_epoch": unneeded("held-out data is judged about ten times a run; evaluation.every says otherwise"),
    "save_strategy": same_as(_BASE, "save_strategy"),
    "save_steps": same_as(_BASE, "save_steps"),
    "saves_per_epoch": unneeded("there is a checkpoint at the end of each epoch; checkpoints.every says otherwise"),
    "save_total_limit": same_as(_BASE, "save_total_limit"),
    "save_safetensors": unneeded("weights are always safetensors"),
    "save_only_model": same_as(_BASE, "save_only_model"),
    "load_best_model_at_end": same_as(_BASE, "load_best_model_at_end"),
    "early_stopping_patience": same_as(_BASE, "early_stopping_steps"),
    "hub_model_id": refused("nothing is uploaded; send the folder afterwards: hf upload NAME FOLDER", "text"),
    "logging_steps": same_as(_BASE, "logging_steps", default=None),
    **all_of(
        unneeded("no tracker is fed; the run's folder has metrics.jsonl and report.html"),
        wandb_project=None,
        wandb_entity=None,
        wandb_watch=None,
        wandb_name=None,
        wandb_run_id=None,
        wandb_log_model=None,
        wandb_mode=None,
        mlflow_experiment_name=None,
        mlflow_tracking_uri=None,
        use_tensorboard=None,
        debug=None,
    ),
}

_FUSED_LOSSES = ("liger", "cut_cross_entropy", "kernels")


def start(t: Translation) -> None:
    """Say which of LLaMA-Factory's words axolotl's mean: the shared rules know those."""
    if not t.said("model_name_or_path"):
        t.refuse("model_name_or_path", "is missing", "name a folder, or a model of the Hub", fatal=True)
    if not t.said("datasets"):
        t.refuse("datasets", "is missing: nothing would train", fatal=True)
    _method(t)
    for name in ("bf16", "fp16", "torch_compile"):
        t.mean(name, str(t.value(name)).lower() in ("true", "full"), name)
    if t.said("rl"):
        why = "axolotl's preference and reward training is not translated"
        t.refuse("rl", why, "set the stage in a recipe: dpo, kto, orpo, simpo or cpo", fatal=True)
    if t.value("cosine_min_lr_ratio"):
        t.mean("lr_scheduler_type", "cosine_with_min_lr", "cosine_min_lr_ratio")
        t.mean("lr_scheduler_kwargs", {"min_lr_rate": t.value("cosine_min_lr_ratio")}, "cosine_min_lr_ratio")
    if t.said("warmup_steps"):
        t.assumed["warmup_ratio"] = None


def _method(t: Translation) -> None:
    adapter = t.value("adapter")
    if adapter not in (None, "lora", "qlora"):
        t.refuse(
            "adapter", f"{adapter} has no equal", "name one of `tunesmith list methods` as method=NAME", fatal=True
        )
    t.mean("finetuning_type", "lora" if adapter else "full", "adapter")
    for name, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if t.value(name) and adapter:
            t.mean("quantization_bit", bits, name)
    if t.value("lora_target_linear"):
        t.mean("lora_target", ["all"], "lora_target_linear")
    elif t.value("lora_target_modules"):
        asked = t.value("lora_target_modules")
        names = asked if isinstance(asked, list) else [asked]
        t.mean("lora_target", ["all"] if asked == "all-linear" else names, "lora_target_modules")
    else:
        t.assumed["lora_target"] = ["q_proj", "v_proj"]  # peft's own choice for most architectures


def rest(t: Translation) -> None:
    """Translate what axolotl says in ways of its own."""
    word = str(t.value("gradient_checkpointing")).lower()
    t.put("engine.gradient_checkpointing", word not in ("false", "none"), "gradient_checkpointing")
    offload = word.startswith("offload") or str(t.value("activation_offloading")).lower() not in ("false", "none")
    if offload:
        name = "activation_offloading" if t.said("activation_offloading") else "gradient_checkpointing"
        t.put("engine.activation_offload", True, name)
    others = set(t.value("special_tokens") or {}) - {"pad_token"}
    if others:
        t.explain("special_tokens", "a turn ends with the template's own token, and padding is never learnt")
    elif t.said("special_tokens"):
        t.remarks["special_tokens"] = "padding is never learnt"
    for plugin in t.value("plugins") or []:
        if any(part in str(plugin).lower() for part in _FUSED_LOSSES):
            t.remarks["plugins"] = "Tunesmith's own loss never holds the whole logit matrix"
        else:
            t.refuse("plugins", f"{plugin} has no equal")
    patterns: list[Any] = t.value("unfrozen_parameters") or []
    if patterns and t.value("finetuning_type") == "full":
        t.put("method.type", "freeze", "unfrozen_parameters")
        t.put("method.last", 0, "unfrozen_parameters")
        t.put("method.also", patterns, "unfrozen_parameters")
    if t.value("early_stopping_steps"):
        t.put("evaluation.patience", t.value("early_stopping_steps"), "early_stopping_steps")


AXOLOTL = Program(
    name="axolotl",
    title="axolotl",
    arguments=_ARGUMENTS,
    rules=(
        start,
        huggingface.output,
        blocks.stage,
        blocks.model,
        blocks.quantization,
        axolotl_data.data,
        axolotl_data.template,
        blocks.method,
        rest,
        huggingface.schedule,
        blocks.optimizer,
        huggingface.engine,
        huggingface.evaluation,
    ),
    complete=False,
)
