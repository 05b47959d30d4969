"""LLaMA-Factory's arguments of preferences and rewards: each waits for the setting of a stage that it would be.

A row counts as soon as there is a stage of that name with that setting; until then it is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.recipe.importing.argument import Argument, of_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

_PAIRS = "stage=dpo|rm|ppo|kto"

PREFERENCES: Mapping[str, Argument] = {
    "pref_beta": of_stage("dpo", "beta", "number", 0.1, needs="stage=dpo|kto"),
    "pref_ftx": of_stage("dpo", "sft_weight", "number", 0.0, needs="stage=dpo|kto"),
    "pref_bco_weight": of_stage("dpo", "bco_weight", "number", 0.0, needs="stage=dpo"),
    "pref_loss": of_stage("dpo", "loss", "text", "sigmoid", needs="stage=dpo"),
    "dpo_label_smoothing": of_stage("dpo", "label_smoothing", "number", 0.0, needs="stage=dpo"),
    "ld_alpha": of_stage("dpo", "length_weight", "number", needs="stage=dpo"),
    "simpo_gamma": of_stage("simpo", "margin", "number", 0.5, needs="stage=dpo"),
    "kto_chosen_weight": of_stage("kto", "chosen_weight", "number", 1.0, needs="stage=kto"),
    "kto_rejected_weight": of_stage("kto", "rejected_weight", "number", 1.0, needs="stage=kto"),
    "ppo_buffer_size": of_stage("ppo", "buffer_size", "whole", 1, needs="stage=ppo"),
    "ppo_epochs": of_stage("ppo", "epochs", "whole", 4, needs="stage=ppo"),
    "ppo_score_norm": of_stage("ppo", "normalize_scores", "flag", False, needs="stage=ppo"),
    "ppo_target": of_stage("ppo", "target_divergence", "number", 6.0, needs="stage=ppo"),
    "ppo_whiten_rewards": of_stage("ppo", "whiten_rewards", "flag", False, needs="stage=ppo"),
    "ref_model": of_stage("dpo", "reference", "text", needs=_PAIRS),
    "ref_model_adapters": of_stage("dpo", "reference_adapter", "text", needs=_PAIRS),
    "ref_model_quantization_bit": of_stage("dpo", "reference_quantization", "whole", needs=_PAIRS),
    "reward_model": of_stage("ppo", "reward", "text", needs="stage=ppo"),
    "reward_model_adapters": of_stage("ppo", "reward_adapter", "text", needs="stage=ppo"),
    "reward_model_quantization_bit": of_stage("ppo", "reward_quantization", "whole", needs="stage=ppo"),
    "reward_model_type": of_stage("ppo", "reward_kind", "text", "lora", needs="stage=ppo"),
}
