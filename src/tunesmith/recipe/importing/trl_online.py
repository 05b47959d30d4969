"""TRL's arguments (1.16) of ``trl grpo`` and ``trl rloo``, and the rules that make a stage and its rewards of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.recipe.importing.argument import Argument, all_of, copied, refused, ruled, unneeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.recipe.importing.translation import Translation

STAGES = ("grpo", "rloo")
_EITHER, _GRPO, _RLOO = "stage=grpo|rloo", "stage=grpo", "stage=rloo"
_VLLM = "who writes the answers changes speed only; a server that does is stage.sampling.server"
_CORRECTED = "sampler_gap in the metrics is how far sampling and training disagree; nothing is weighted by it"
_LOGGED = "answers go to samples/rollouts.jsonl and the report, every stage.record_every steps"
_ENTROPY = "there is no entropy bonus; stage.beta and stage.sampling.temperature keep answers different"
# TRL's get_soft_overlong_punishment, as its script makes it
_LONGEST, _MARGIN = 1280, 256
_THOUGHT = r"(?s)<think>(?!.*<think>).*?</think>.*"

ONLINE: Mapping[str, Argument] = {
    # both commands have these
    "reward_funcs": ruled("stage.rewards", "names", needs=_EITHER),
    "reward_model_name_or_path": ruled("stage.rewards", "text", needs=_EITHER),
    "reward_weights": ruled("stage.rewards", "any", needs=_EITHER),
    "num_generations": copied("stage.num_generations", "whole", 8, needs=_EITHER),
    "num_generations_eval": unneeded("one answer to each held-out prompt is judged", "whole", needs=_EITHER),
    "max_completion_length": copied("stage.sampling.max_new_tokens", "whole", 512, needs=_EITHER),
    "generation_batch_size": ruled("schedule.batch_size", "whole", needs=_EITHER),
    "steps_per_generation": ruled("schedule.batch_size", "whole", needs=_EITHER),
    "temperature": copied("stage.sampling.temperature", "number", 1.0, needs=_EITHER),
    "top_p": copied("stage.sampling.top_p", "number", 1.0, needs=_EITHER),
    "top_k": copied("stage.sampling.top_k", "whole", 0, needs=_EITHER),
    "min_p": copied("stage.sampling.min_p", "number", needs=_EITHER),
    "generation_kwargs": refused("how answers are sampled is stage.sampling", "group", needs=_EITHER),
    "chat_template_kwargs": copied("template.arguments", "group", needs=_EITHER),
    "repetition_penalty": refused(
        "the loss would not know of it; reward with the score repetition", "number", 1.0, needs=_EITHER
    ),
    "cache_implementation": unneeded("the cache is the model's own", "text", needs=_EITHER),
    "num_iterations": copied("stage.num_iterations", "whole", 1, needs=_EITHER),
    "epsilon": copied("stage.epsilon", "number", 0.2, needs=_EITHER),
    "epsilon_high": copied("stage.epsilon_high", "number", needs=_EITHER),
    "mask_truncated_completions": copied("stage.mask_truncated_completions", "flag", False, needs=_EITHER),
    **all_of(
        unneeded(_LOGGED, needs=_EITHER),
        log_completions=False,
        num_completions_to_print=None,
        log_multimodal=True,
        log_unique_prompts=False,
    ),
    "ds3_gather_for_generation": unneeded("weights are not split over processes", "flag", True, needs=_EITHER),
    "use_vllm": unneeded(_VLLM, "flag", False, needs=_EITHER),
    "vllm_structured_outputs_regex": ruled("stage.sampling.constraint", "text", needs="use_vllm"),
    **all_of(
        unneeded(_VLLM, needs=_EITHER),
        vllm_mode="colocate",
        vllm_model_impl="vllm",
        vllm_enable_sleep_mode=False,
        vllm_server_base_url=None,
        vllm_server_host="0.0.0.0",
        vllm_server_port=8000,
        vllm_server_timeout=240.0,
        vllm_group_port=51216,
        vllm_gpu_memory_utilization=0.3,
        vllm_max_model_length=None,
        vllm_tensor_parallel_size=1,
        use_transformers_continuous_batching=False,
        transformers_continuous_batching_config=None,
        use_transformers_paged=False,
    ),
    # and these one of them
    "delta": copied("stage.delta", "number", needs=_GRPO),
    "importance_sampling_level": copied("stage.importance_sampling_level", "text", "token", needs=_GRPO),
    "multi_objective_aggregation": copied(
        "stage.multi_objective_aggregation", "text", "sum_then_normalize", needs=_GRPO
    ),
    "scale_rewards": ruled("stage.scale_rewards", "text", "group", needs=_GRPO),
    "sapo_temperature_pos": copied("stage.sapo_temperature_pos", "number", 1.0, needs=_GRPO),
    "sapo_temperature_neg": copied("stage.sapo_temperature_neg", "number", 1.05, needs=_GRPO),
    **all_of(
        refused("the loss vespo is not there", "number", needs=_GRPO),
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
    ),
    "use_bias_correction_kl": ruled("stage.beta", "flag", True, needs=_GRPO),
    "cast_lm_head_to_fp32": refused(
        "the head computes as the rest does; engine.precision: float32 is for all of it", "flag", False, needs=_GRPO
    ),
    "top_entropy_quantile": refused("every token of an answer is learnt", "number", 1.0, needs=_GRPO),
    "entropy_coef": refused(_ENTROPY, "number", 0.0, needs=_GRPO),
    "use_adaptive_entropy": refused(_ENTROPY, "flag", False, needs=_GRPO),
    **all_of(
        refused(_ENTROPY, "number", needs="use_adaptive_entropy"),
        entropy_coef_min=0.0,
        entropy_coef_max=1.0,
        entropy_coef_delta=0.005,
        entropy_target=0.2,
    ),
    "max_tool_calling_iterations": refused("answers are sampled without calling tools", "whole", needs=_GRPO),
    "off_policy_mask_threshold": refused("no answer is left out for being old", "number", needs=_GRPO),
    **all_of(
        unneeded(_CORRECTED, needs=_GRPO),
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="sequence_mask",
        vllm_importance_sampling_clip_max=3.0,
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_cap=None,
    ),
    "log_completions_hub_repo": refused("nothing is uploaded; they are in the run's folder", "text", needs=_GRPO),
    "normalize_advantages": copied("stage.normalize_advantages", "flag", False, needs=_RLOO),
    "reward_clip_range": copied("stage.reward_clip_range", "any", needs=_RLOO),
}

# what leaving an argument out means, where both or others have it
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"beta": 0.0, "num_generations": 8, "learning_rate": 1e-6, "loss_type": ["dapo"], "disable_dropout": False},
    "rloo": {"beta": 0.05, "num_generations": 2, "learning_rate": 1e-6, "disable_dropout": False},
}
# what TRL's prompts may have beside the longest answer: it does not cut them
_PROMPT_TOKENS = 2048


def asked_for(t: Translation) -> tuple[str, str] | None:
    """Return ``grpo`` or ``rloo`` and the argument that says so; None where none of theirs was given."""
    said = [name for name in ONLINE if t.said(name)]
    own = [name for name in said if ONLINE[name].needs == _RLOO]
    return ("rloo", own[0]) if own else ("grpo", said[0]) if said else None


def online(t: Translation) -> None:
    """Translate the loss, the rewards and the number of prompts; must come after schedule and data."""
    if t.value("stage") not in STAGES:
        return
    longest = t.value("max_completion_length")
    t.put("data.max_tokens", longest + _PROMPT_TOKENS, note="TRL takes prompts of any length; longer ones are left out")
    if t.value("stage") == "grpo":
        _loss(t)
    if t.value("disable_dropout") and t.value("use_peft"):
        t.put("method.dropout", 0.0, "disable_dropout")
    if t.value("use_vllm") and (pattern := t.value("vllm_structured_outputs_regex")):
        values = {"type": "regex", "pattern": pattern}
        t.put("stage.sampling.constraint", values, "vllm_structured_outputs_regex")
    _prompts(t)
    _rewards(t)


def _loss(t: Translation) -> None:
    (name, *others) = t.value("loss_type")
    if name == "vespo" or others:
        known = "grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo"
        t.refuse("loss_type", f"{', '.join([name, *others])} has no equal", f"one of {known}", fatal=True)
    else:
        t.put("stage.loss_type", name, "loss_type")
    asked = str(t.value("scale_rewards"))
    scale = {"true": "group", "false": "none"}.get(asked.lower(), asked)
    t.put("stage.scale_rewards", scale, "scale_rewards")
    if t.value("beta") and t.value("use_bias_correction_kl"):
        note = "the divergence is as in use_bias_correction_kl: false, which TRL's default multiplies by the ratio"
        t.put("stage.beta", t.value("beta"), "beta", note=note)
        if t.said("use_bias_correction_kl"):
            t.explain("use_bias_correction_kl", note, "stage.beta")


def _prompts(t: Translation) -> None:
    """Translate the batch: TRL counts answers, and we prompts."""
    one, accumulated = t.value("per_device_train_batch_size"), t.value("gradient_accumulation_steps")
    group, answers = t.value("num_generations"), one * accumulated * t.processes
    written = t.value("generation_batch_size") or answers
    if t.value("steps_per_generation") not in (None, accumulated):
        t.refuse(
            "steps_per_generation", "answers are written for the step that learns from them; num_iterations reuses"
        )
    elif written != answers:
        t.refuse("generation_batch_size", f"answers are written for the step that learns from them: {answers}")
    if answers % group:
        why = f"{answers} answers a step are no whole number of groups of {group}"
        t.refuse("num_generations", why, "make the batch a multiple of it", fatal=True)
        return
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations")
    note = f"prompts: TRL counts their answers, {answers} a step, {group} to each"
    t.put("schedule.batch_size", answers // group, *names, note=note)


def _rewards(t: Translation) -> None:
    """Translate TRL's reward model and functions, each with its weight."""
    asked = [*filter(None, [t.value("reward_model_name_or_path")]), *(t.value("reward_funcs") or [])]
    weights = t.value("reward_weights") or [1.0] * len(asked)
    if not isinstance(weights, list) or len(weights) != len(asked):
        t.refuse("reward_weights", f"should be a list of {len(asked)} numbers, one for each reward", fatal=True)
        return
    rewards = []
    for at, (name, weight) in enumerate(zip(asked, map(float, weights), strict=True)):
        if at == 0 and t.said("reward_model_name_or_path"):
            rewards.append({"score": {"type": "reward_model", "model": name}, "weight": weight})
        elif name == "think_format_reward":
            rewards.append({"score": {"type": "regular_expression", "pattern": _THOUGHT}, "weight": weight})
        elif name == "get_soft_overlong_punishment" and (t.value("max_completion_length"), weight) == (_LONGEST, 1.0):
            t.put("stage.overlong_margin", _MARGIN, "reward_funcs")
        else:
            t.refuse("reward_funcs", f"{name}: {_why_not(name)}")
    if rewards:
        t.put("stage.rewards", rewards, "reward_funcs", "reward_model_name_or_path", "reward_weights")
        # what put says of it takes the place of what was said before
        if t.said("reward_model_name_or_path"):
            t.explain("reward_model_name_or_path", "its logistic counts, between 0 and 1", "stage.rewards")
    else:
        hint = "name reward_funcs that there are here, or a reward_model_name_or_path"
        t.refuse("reward_funcs", "nothing is left that says what an answer is worth", hint, fatal=True)


def _why_not(function: str) -> str:
    """Return why TRL's reward *function* is none of ours."""
    if function == "get_soft_overlong_punishment":
        return f"TRL's counts from {_LONGEST} tokens, whatever the longest is; set stage.overlong_margin instead"
    if "." in function:
        path = ":".join(function.rsplit(".", 1))
        own = f"stage.rewards=[{{score: {{type: python_function, path: {path}}}}}]"
        return f"TRL calls it with lists of answers; let it take (conversation, answer), for {own}"
    return "it has no equal; exact_match compares with the data's answer, python_function calls what you write"
