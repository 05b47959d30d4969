"""TRL's arguments (1.16) of ``trl sft``: its configuration, the script's own, and what all of TRL's commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.source import Source, settle_source
from tunesmith.recipe.importing import blocks, huggingface, trl_online, trl_preferences
from tunesmith.recipe.importing.argument import (
    Argument,
    Program,
    all_of,
    copied,
    refused,
    ruled,
    same_as,
    unneeded,
)
from tunesmith.recipe.importing.llamafactory import LLAMAFACTORY
from tunesmith.recipe.importing.trl_online import ONLINE
from tunesmith.recipe.importing.trl_preferences import DPO, KTO, REWARD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.recipe.importing.translation import Translation

_BASE = LLAMAFACTORY.arguments
_MADE = "examples are made with all cores, and kept"
_PACKED = "sequences are always packed, and none sees another"

_SCRIPT: Mapping[str, Argument] = {
    "stage": ruled("stage", "text", "sft"),  # the command: trl sft, dpo, kto, reward, grpo or rloo
    "dataset_name": ruled("data.train", "text"),
    "dataset_config": ruled("data.train", "text"),
    "dataset_train_split": ruled("data.train", "text", "train"),
    "dataset_test_split": ruled("data.validation", "text", "test"),
    "datasets": ruled("data.train", "any"),
    "test_split_size": copied("data.validation_share", "number"),
    **all_of(unneeded("examples are made once and mapped into memory", "flag"), dataset_streaming=False),
    **all_of(unneeded("examples are made once and mapped into memory", "flag"), streaming=False),
    "ignore_bias_buffers": unneeded("nothing depends on it", "flag", False),
    "env": refused("variables belong to the shell that starts the run"),
}

_MODEL: Mapping[str, Argument] = {
    "model_name_or_path": same_as(_BASE, "model_name_or_path"),
    "model_revision": same_as(_BASE, "model_revision"),
    "trust_remote_code": same_as(_BASE, "trust_remote_code"),
    "dtype": unneeded(
        "weights that train are float32; frozen ones are as short as engine.precision", "text", "float32"
    ),
    "attn_implementation": unneeded("the machine decides, and engine.attention", "text"),
    "model_init_kwargs": refused("there is no way to hand transformers arguments of its own", "group"),
    "router_aux_loss_coef": refused("the router's balance loss is not there yet", "number"),
    "use_peft": ruled("method", "flag", False),
    "lora_r": same_as(_BASE, "lora_rank", default=16, needs="use_peft"),
    "lora_alpha": same_as(_BASE, "lora_alpha", default=32, needs="use_peft"),
    "lora_dropout": same_as(_BASE, "lora_dropout", default=0.05, needs="use_peft"),
    "lora_target_modules": ruled("method.targets", "names", needs="use_peft"),
    "lora_target_parameters": refused("single parameters cannot be named", "names", needs="use_peft"),
    "lora_modules_to_save": same_as(_BASE, "additional_target", needs="use_peft"),
    "lora_task_type": unneeded("the stage says it", "text", "CAUSAL_LM"),
    "use_rslora": same_as(_BASE, "use_rslora", needs="use_peft"),
    "use_dora": same_as(_BASE, "use_dora", needs="use_peft"),
    "load_in_8bit": ruled("model.quantization", "flag", False),
    "load_in_4bit": ruled("model.quantization", "flag", False),
    "bnb_4bit_quant_type": same_as(_BASE, "quantization_type", needs="load_in_4bit"),
    "use_bnb_nested_quant": same_as(_BASE, "double_quantization", default=False, needs="load_in_4bit"),
    "bnb_4bit_quant_storage": unneeded("it matters to sharded weights only", "text"),
}

_SFT: Mapping[str, Argument] = {
    "max_length": copied("data.max_tokens", "whole", 1024, needs="stage=sft|dpo|kto|rm"),
    "truncation_mode": refused("a longer one loses its end", "text", "keep_start"),
    "completion_only_loss": ruled("stage.train_on_prompt", "flag"),
    "assistant_only_loss": ruled("stage.train_on_prompt", "flag", False),
    "chat_template_path": ruled("template.name", "text"),
    "dataset_text_field": refused("name it in the recipe: data.train with columns: {text: …}", "text", "text"),
    "dataset_kwargs": refused("rows are read by data.train.format", "group"),
    "loss_type": ruled("", "names", ["nll"]),
    "eos_token": refused("a turn ends with the template's own token", "text"),
    "pad_token": unneeded("padding is never seen, nor learnt", "text"),
    "activation_offloading": copied("engine.activation_offload", "flag", False),
    **all_of(unneeded(_MADE), dataset_num_proc=None, shuffle_dataset=False),
    **all_of(
        unneeded(_PACKED),
        packing=False,
        packing_strategy="bfd",
        padding_free=False,
        pad_to_multiple_of="auto",
        eval_packing=None,
    ),
}

_SEQUENCE_TO_SEQUENCE = (
    *("sortish_sampler", "predict_with_generate"),
    *("generation_max_length", "generation_num_beams", "generation_config"),
)
_TRAINING = {name: row for name, row in huggingface.ARGUMENTS.items() if name not in _SEQUENCE_TO_SEQUENCE}

_INHERITED: Mapping[str, Argument] = {
    "learning_rate": same_as(_BASE, "learning_rate", default=2e-5),
    "bf16": same_as(_BASE, "bf16", default=True),
    "gradient_checkpointing": same_as(_BASE, "gradient_checkpointing", default=True),
    "logging_steps": same_as(_BASE, "logging_steps", default=10),
    **all_of(unneeded("trl trains, whatever it says", "flag"), do_train=False, do_predict=False),
    # of newer transformers than LLaMA-Factory's
    **all_of(
        unneeded("blocks are computed again or not: engine.gradient_checkpointing"),
        activation_checkpointing=None,
        activation_checkpointing_kwargs=None,
    ),
    **all_of(
        unneeded("examples are mapped into memory; there is no loader to tune"),
        dataloader_in_order=True,
        dataloader_multiprocessing_context=None,
    ),
}


def begin(t: Translation) -> None:
    """Say which command the arguments are of, and what leaving one out means there: rows depend on it."""
    if t.value("stage") == "reward":
        t.mean("stage", "rm", "stage")
    elif not t.said("stage") and (found := trl_online.asked_for(t)):
        t.mean("stage", *found)
    elif not t.said("stage"):
        kinds = {"kto": KTO, "rm": REWARD, "dpo": DPO}
        theirs = ((stage, name) for stage, rows in kinds.items() for name in rows if t.said(name))
        t.mean("stage", *next(theirs, ("sft", "stage")))
    t.assumed |= {**trl_preferences.DEFAULTS, **trl_online.DEFAULTS}.get(t.value("stage"), {})


def start(t: Translation) -> None:
    """Say which of LLaMA-Factory's words TRL's mean: the shared rules know those."""
    if not t.said("model_name_or_path"):
        t.refuse("model_name_or_path", "is missing", "name a folder, or a model of the Hub", fatal=True)
    if not t.said("dataset_name") and not t.said("datasets"):
        t.refuse("dataset_name", "is missing: nothing would train", fatal=True)
    t.mean("finetuning_type", "lora" if t.value("use_peft") else "full", "use_peft")
    for name, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if t.value(name):
            t.mean("quantization_bit", bits, name)
    if t.value("fp16") and not t.said("bf16"):
        t.mean("bf16", False, "fp16")
    targets = t.value("lora_target_modules")
    t.mean(
        "lora_target", ["all"] if targets == ["all-linear"] else targets or ["q_proj", "v_proj"], "lora_target_modules"
    )
    if t.value("loss_type") not in (["nll"], ["chunked_nll"]) and t.value("stage") == "sft":
        t.refuse("loss_type", "only the plain loss is there (nll)", fatal=True)


def stage(t: Translation) -> None:
    """Translate what is minimised."""
    if t.value("stage") in trl_online.STAGES:
        guessed = t.value("stage") == "grpo" and t.asked["stage"].name != "stage"
        note = "taken for trl grpo, whose arguments trl rloo has too" if guessed else ""
        t.put("stage.type", t.value("stage"), "stage", note=note)
    else:
        blocks.stage(t)


def data(t: Translation) -> None:
    """Translate the data set, or the mixture of them."""
    if t.said("datasets"):
        asked = t.value("datasets")
        groups = asked if isinstance(asked, list) else [asked]
        t.put("data.train", [_mixed(t, each) for each in groups], "datasets")
    else:
        train = _source(t, "dataset_train_split")
        t.put("data.train", [train], "dataset_name", "dataset_config", "dataset_train_split")
        if t.value("eval_strategy") != "no" and not t.said("test_split_size"):
            t.put("data.validation", [_source(t, "dataset_test_split")], "dataset_test_split")
    _trained_tokens(t)


def _source(t: Translation, split: str) -> Any:
    source = {"path": t.value("dataset_name"), "subset": t.value("dataset_config"), "split": t.value(split)}
    usual = {"subset": None, "split": "train"}
    said = {key: value for key, value in source.items() if value != usual.get(key)}
    return said if len(said) > 1 else said["path"]


def _mixed(t: Translation, each: Any) -> Any:
    if not isinstance(each, dict) or "path" not in each:
        t.refuse("datasets", f"each should be a group with a path, found {each!r}", fatal=True)
        return {"path": "?"}
    names = {"path": "path", "name": "subset", "data_dir": "folder", "split": "split"}
    others = set(each) - set(names)
    if others:
        t.refuse("datasets", f"{', '.join(sorted(others))} of {each['path']} has no equal")
    return {names[key]: value for key, value in each.items() if key in names and value is not None}


def _trained_tokens(t: Translation) -> None:
    """Say whether prompts are learnt: TRL learns all of a conversation, but only the completion of a prompt."""
    if t.value("stage") != "sft":
        return
    kind = _format(t.values["data"]["train"][0])
    if kind == "text":
        t.put("stage.type", "pretrain", note="rows are plain text")
        return
    if t.value("assistant_only_loss") or t.value("completion_only_loss"):
        return
    if t.said("completion_only_loss"):
        t.put("stage.train_on_prompt", True, "completion_only_loss")
        return
    if kind in ("openai", "sharegpt"):
        note = "TRL learns every token of a conversation unless assistant_only_loss is set"
        t.put("stage.train_on_prompt", True, note=note)
    elif kind is None:
        t.explain(
            "datasets" if t.said("datasets") else "dataset_name",
            "of conversations TRL learns the prompts, too: stage.train_on_prompt=true",
            "data.train",
        )


def _format(source: Any) -> str | None:
    """Return the format of a source that lies here; ``None`` for another."""
    try:
        settled = settle_source(Source.model_validate(source), "data.train", use_hub=False)
    except (RecipeError, DataError, ValidationError):
        return None
    return settled.format.type_name() if settled else None


def template(t: Translation) -> None:
    """Translate the template: a file, or the model's own."""
    path = t.value("chat_template_path")
    if path and str(path).endswith(".jinja"):
        t.put("template.name", path, "chat_template_path")
    elif path:
        t.refuse("chat_template_path", f"{path} is no .jinja file", "save that model's template in one")


TRL = Program(
    name="trl",
    title="TRL",
    arguments={
        **{**_TRAINING, **huggingface.OLD_ARGUMENTS, **_INHERITED},
        **{**_SCRIPT, **_MODEL, **_SFT, **DPO, **KTO, **REWARD, **ONLINE},
    },
    begin=begin,
    rules=(
        start,
        huggingface.output,
        stage,
        blocks.model,
        blocks.quantization,
        data,
        template,
        blocks.method,
        trl_preferences.preferences,
        huggingface.schedule,
        trl_online.online,
        blocks.optimizer,
        huggingface.engine,
        huggingface.evaluation,
    ),
    old_names={**huggingface.OLD_NAMES, "max_seq_length": "max_length", "torch_dtype": "dtype"},
)
