"""Rules for the blocks of a recipe, in the words of LLaMA-Factory, which the other programs' tables refer to."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.recipe.document import read_document
from tunesmith.recipe.importing import huggingface

if TYPE_CHECKING:
    from tunesmith.recipe.importing.translation import Translation

_STAGES = {"pt": "pretrain", "sft": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo", "kto": "kto"}
_HQQ_BITS = (1, 2, 3, 4, 8)


def export_or_serve(t: Translation) -> None:
    """Refuse configurations that do not train, with the command that does what they ask for."""
    adapters = t.value("adapter_name_or_path") or []
    model = quote(adapters[-1] if adapters else str(t.value("model_name_or_path") or "MODEL"))
    if t.said("export_dir"):
        bits = " --quantization nf4" if t.value("export_quantization_bit") else ""
        command = f"tunesmith export {model} --to {quote(t.value('export_dir'))}{bits}"
        t.refuse("export_dir", f"it merges or converts a model, and trains nothing. Run: {command}", fatal=True)
    elif t.value("do_predict") and not t.value("do_train"):
        t.refuse("do_predict", f"it judges a model. Run: tunesmith evaluate {model} --data FILE", fatal=True)
    elif not t.said("dataset") and not t.said("model_name_or_path"):
        hint = "both are needed: a model to start from and data to learn"
        t.refuse("model_name_or_path", "is missing, and so is dataset", hint, fatal=True)
    elif not t.said("model_name_or_path"):
        t.refuse("model_name_or_path", "is missing", "name a folder, or a model of the Hub", fatal=True)
    elif not t.said("dataset"):
        why = f"is missing: nothing would train. To talk with the model: tunesmith chat {model}"
        t.refuse("dataset", why, fatal=True)
    elif t.said("do_train") and not t.value("do_train"):
        t.refuse("do_train", f"is off. To judge a model: tunesmith evaluate {model} --data FILE", fatal=True)
    elif t.value("do_predict"):
        t.explain("do_predict", "held-out data is answered by base and tuned model once training has ended")


def stage(t: Translation) -> None:
    """Translate what is minimised."""
    asked = t.value("stage")
    name = _STAGES.get(asked)
    if name is None:
        t.refuse("stage", f"{asked!r} is no stage", f"one of {', '.join(_STAGES)}", fatal=True)
    else:
        t.put("stage.type", name, "stage")
        if t.value("mask_history") and name == "sft":
            t.put("stage.turns", "last", "mask_history")
        if name == "pretrain":
            t.explain("stage", "a long text is split into pieces; no piece holds two texts", "stage.type")


def model(t: Translation) -> None:
    """Translate what to start from."""
    adapters = t.value("adapter_name_or_path") or []
    if len(adapters) > 1:
        command = "tunesmith adapter add"
        t.refuse("adapter_name_or_path", "several adapters: make them one first", f"{command} --help", fatal=True)
    elif adapters:
        t.put("model.path", adapters[0], "adapter_name_or_path")
        t.explain("model_name_or_path", f"the adapter says itself that it stands on {t.value('model_name_or_path')}")
        new = t.value("create_new_adapter")
        t.put("model.adapter", "merge" if new else "continue", "create_new_adapter", "adapter_name_or_path")
    else:
        t.put("model.path", t.value("model_name_or_path"), "model_name_or_path")
    if t.value("model_revision") not in (None, "main"):
        t.put("model.revision", t.value("model_revision"), "model_revision")
    _new_tokens(t)
    _rope(t)


def _new_tokens(t: Translation) -> None:
    tokens: dict[str, str] = {}
    for name in ("add_tokens", "add_special_tokens"):
        tokens |= dict.fromkeys(t.value(name) or [], "")
    if path := t.value("new_special_tokens_config"):
        try:
            tokens |= {str(token): str(words) for token, words in read_document(Path(path)).values.items()}
        except UserError as error:
            t.refuse("new_special_tokens_config", str(error), fatal=True)
    if tokens:
        names = ("new_special_tokens_config", "add_special_tokens", "add_tokens")
        asked = [name for name in names if t.said(name)]
        t.put("model.new_tokens", tokens, *asked, note="only their rows of the embedding train")


def local_config(t: Translation) -> dict[str, Any]:
    """Return the model's configuration where it lies in a folder; nothing for a model of the Hub."""
    file = Path(str(t.value("model_name_or_path"))).expanduser() / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rope(t: Translation) -> None:
    kind = t.value("rope_scaling")
    if not kind:
        return
    context = local_config(t).get("max_position_embeddings")
    length = t.value("cutoff_len")
    if not context:
        why = "LLaMA-Factory's factor is cutoff_len over the model's context, which is not known before it is here"
        t.refuse("rope_scaling", why, f"say it: 'model.rope_scaling={{type: {kind}, factor: 2}}'")
    elif length <= context:
        t.explain("rope_scaling", f"nothing to scale: cutoff_len {length} is within the model's {context}")
    else:
        factor = float(math.ceil(length / context))
        note = f"cutoff_len {length} over the model's {context}, rounded up"
        t.put("model.rope_scaling", {"type": kind, "factor": factor}, "rope_scaling", note=note)


def quantization(t: Translation) -> None:
    """Translate quantization while loading."""
    bits, how = t.value("quantization_bit"), t.value("quantization_method")
    if bits is None:
        return
    names = ("quantization_bit", "quantization_method")
    path = "model.quantization"
    if how in ("bnb", "bitsandbytes") and bits == 4:
        t.put(f"{path}.type", t.value("quantization_type"), *names, "quantization_type")
        t.put(f"{path}.double", t.value("double_quantization"), "double_quantization")
    elif how in ("bnb", "bitsandbytes") and bits == 8:
        t.put(f"{path}.type", "int8", *names)
    elif how == "hqq" and bits in _HQQ_BITS:
        t.put(f"{path}.type", "hqq", *names)
        t.put(f"{path}.bits", bits, "quantization_bit")
    elif how == "eetq" and bits == 8:
        t.put(f"{path}.type", "eetq", *names)
    else:
        hint = "bnb has 4 and 8, hqq 1, 2, 3, 4 and 8, eetq 8"
        t.refuse("quantization_bit", f"{bits} bits with {how} have no equal", hint, fatal=True)


def method(t: Translation) -> None:
    """Translate which weights train."""
    asked = t.value("finetuning_type")
    makers = {"full": _full, "freeze": _freeze, "lora": _lora, "oft": _oft}
    if t.said("use_lora") and not t.said("finetuning_type"):
        asked = "lora" if t.value("use_lora") else "full"
    elif t.said("use_lora") and t.value("use_lora") != (asked == "lora"):
        t.refuse("use_lora", f"contradicts finetuning_type {asked}", "leave it out", fatal=True)
    if t.value("adapter_name_or_path") and not t.value("create_new_adapter"):
        t.put("method.type", asked, "finetuning_type")
        for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target"):
            if t.said(name):
                t.explain(name, "the adapter that goes on has its own")
    elif asked not in makers:
        t.refuse("finetuning_type", f"{asked!r} is none", f"one of {', '.join(makers)}", fatal=True)
    else:
        makers[asked](t)


def _full(t: Translation) -> None:
    t.put("method.type", "full", "finetuning_type")


def _freeze(t: Translation) -> None:
    t.put("method.type", "freeze", "finetuning_type")
    count, modules = t.value("freeze_trainable_layers"), t.value("freeze_trainable_modules")
    extra = [rf"\b{re.escape(name)}\b" for name in t.value("freeze_extra_modules") or []]
    if modules == ["all"]:
        t.put("method.last", max(count, 0), "freeze_trainable_layers")
        t.put("method.first", max(-count, 0), "freeze_trainable_layers")
    else:
        layers = int(local_config(t).get("num_hidden_layers") or 0)
        if count > 0 and not layers:
            why = "which the last blocks are is not known before the model is here"
            t.refuse("freeze_trainable_modules", why, "give freeze_trainable_layers a negative number, or `all`")
            return
        numbers = range(-count) if count < 0 else range(max(0, layers - count), layers)
        which = "|".join(map(str, numbers))
        extra = [rf"\.({which})\.{re.escape(name)}\b" for name in modules] + extra
        t.put("method.last", 0, "freeze_trainable_layers")
    if extra:
        asked = [name for name in ("freeze_trainable_modules", "freeze_extra_modules") if t.said(name)]
        t.put("method.also", extra, *asked)


def _targets(t: Translation) -> None:
    targets = t.value("lora_target")
    t.put("method.targets", "all-linear" if targets == ["all"] else targets, "lora_target")
    if t.value("additional_target"):
        t.put("method.modules_to_save", t.value("additional_target"), "additional_target")


def _lora(t: Translation) -> None:
    rank = t.value("lora_rank")
    alpha = t.value("lora_alpha") or 2.0 * rank
    note = "" if t.value("lora_alpha") is not None else f"{t.program.title}'s default: twice the rank"
    pissa, dora, ratio = t.value("pissa_init"), t.value("use_dora"), t.value("loraplus_lr_ratio")
    kind = "pissa" if pissa else "dora" if dora else "lora"
    if pissa and dora:
        t.refuse("use_dora", "pissa_init and use_dora exclude each other here", fatal=True)
    if t.value("use_rslora") and kind == "lora":
        kind = "rslora"
    elif t.value("use_rslora"):
        alpha, note = round(alpha * math.sqrt(rank), 6), f"× √rank, which is what use_rslora does to {kind}"
    if ratio and kind == "lora":
        kind = "lora_plus"
    flags = {"pissa": "pissa_init", "dora": "use_dora", "rslora": "use_rslora", "lora_plus": "loraplus_lr_ratio"}
    t.put("method.type", kind, flags.get(kind, "finetuning_type"))
    _targets(t)
    t.put("method.rank", rank, "lora_rank")
    t.put("method.alpha", alpha, "lora_alpha", *([] if t.said("lora_alpha") else ["lora_rank"]), note=note)
    t.put("method.dropout", t.value("lora_dropout"), "lora_dropout")
    if kind == "pissa":
        t.put("method.iterations", max(0, t.value("pissa_iter")), "pissa_iter")
    if ratio:
        path = "method.ratio" if kind == "lora_plus" else "optimizer.lora_plus_ratio"
        t.put(path, ratio, "loraplus_lr_ratio")


def _oft(t: Translation) -> None:
    t.put("method.type", "oft", "finetuning_type")
    _targets(t)
    t.put("method.block_size", t.value("oft_block_size"), "oft_block_size")
    t.put("method.dropout", t.value("module_dropout"), "module_dropout")


def optimizer(t: Translation) -> None:
    """Translate the optimizer; an argument of its own (``use_galore``) goes before ``optim``."""
    switches = {"use_galore": "galore", "use_apollo": "apollo", "use_badam": "badam"}
    switches |= {"use_adam_mini": "adam_mini", "use_muon": "muon"}
    on = [name for name in switches if t.value(name)]
    if len(on) > 1:
        t.refuse(on[1], f"{on[0]} and {on[1]} exclude each other", "keep one of them", fatal=True)
        return
    chosen = switches[on[0]] if on else ""
    settings: list[tuple[str, Any, str]] = []
    if chosen in ("galore", "apollo"):
        if chosen == "apollo" and t.value("apollo_scale_type") == "tensor":
            chosen = "apollo_mini"
        family = on[0].removeprefix("use_")
        pairs = (("rank", "rank"), ("refresh_every", "update_interval"), ("scale", "scale"))
        settings = [(ours, t.value(f"{family}_{theirs}"), f"{family}_{theirs}") for ours, theirs in pairs]
        if t.value(f"{family}_target") != ["all"]:
            t.refuse(f"{family}_target", "all matrices of the blocks are projected", "leave it out, or say `all`")
        if t.value(f"{family}_layerwise"):
            t.put("engine.optimizer_in_backward", True, f"{family}_layerwise")
            note = "no gradient is kept whose norm could be clipped"
            t.put("schedule.max_gradient_norm", 0.0, f"{family}_layerwise", note=note)
    elif chosen == "badam":
        order = t.value("badam_switch_mode")
        if order == "fixed":
            t.refuse("badam_switch_mode", "blocks take turns", "to train some blocks only: method freeze")
        else:
            settings = [("order", order, "badam_switch_mode")]
        settings.append(("switch_every", t.value("badam_switch_interval"), "badam_switch_interval"))
    huggingface.optimizer(t, chosen, *settings)
    if on and "optimizer" in t.values:
        t.made_of["optimizer.type"] = [on[0]]


def engine(t: Translation) -> None:
    """Translate memory levers: LLaMA-Factory checkpoints blocks unless told otherwise."""
    on = not t.value("disable_gradient_checkpointing")
    t.put("engine.gradient_checkpointing", on, "disable_gradient_checkpointing")
    if t.value("use_unsloth_gc"):
        t.put("engine.activation_offload", True, "use_unsloth_gc")
    if t.value("pure_bf16"):
        t.put("engine.precision", "bfloat16", "pure_bf16")
        if t.value("finetuning_type") in ("full", "freeze"):
            note = "rounded by chance, so that small steps are not lost"
            t.put("engine.weights", "bfloat16", "pure_bf16", note=note)
        else:
            t.explain("pure_bf16", "adapters train in float32: they are small")


def evaluation(t: Translation) -> None:
    """Translate early stopping, and how answers are made."""
    if t.value("early_stopping_steps"):
        t.put("evaluation.patience", t.value("early_stopping_steps"), "early_stopping_steps")
    path = "evaluation.generation"
    if t.said("do_sample") and not t.value("do_sample"):
        t.put(f"{path}.temperature", 0.0, "do_sample")
    elif t.said("temperature"):
        t.put(f"{path}.temperature", t.value("temperature"), "temperature")
    for name in ("top_p", "top_k", "repetition_penalty", "max_new_tokens"):
        if t.said(name):
            t.put(f"{path}.{name}", t.value(name), name)
