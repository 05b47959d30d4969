"""TRL's arguments (1.16) of ``trl dpo``, ``trl kto`` and ``trl reward``, and the rules that make a stage of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.recipe.importing.argument import Argument, all_of, copied, refused, ruled, unneeded
from tunesmith.stages._pair_losses import LOSSES, SMOOTHED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.recipe.importing.translation import Translation

_PAIRS, _LABELS, _JUDGED, _REWARD = "stage=dpo", "stage=kto", "stage=dpo|kto", "stage=rm"
_COMPARED, _DROPPING = "stage=dpo|kto|grpo|rloo", "stage=dpo|kto|rm|grpo|rloo"

DPO: Mapping[str, Argument] = {
    "beta": copied("stage.beta", "number", 0.1, needs=_COMPARED),
    "label_smoothing": ruled("stage.label_smoothing", "number", 0.0, needs=_PAIRS),
    "loss_weights": ruled("stage.loss_type", "any", needs=_PAIRS),
    "ld_alpha": ruled("stage.tail_weight", "number", needs=_PAIRS),
    "f_divergence_type": ruled("stage.divergence", "text", "reverse_kl", needs=_PAIRS),
    "f_alpha_divergence_coef": ruled("stage.divergence_alpha", "number", 0.5, needs=_PAIRS),
    "discopop_tau": ruled("stage.discopop_temperature", "number", 0.05, needs=_PAIRS),
    "use_weighting": refused("pairs are not weighted by their likelihood (WPO)", "flag", False, needs=_PAIRS),
    "disable_dropout": ruled("method.dropout", "flag", True, needs=_DROPPING),
    "sync_ref_model": refused("the reference stays as it is (TR-DPO moves it)", "flag", False, needs=_COMPARED),
    "ref_model_mixup_alpha": refused("the reference stays as it is", "number", 0.6, needs="sync_ref_model"),
    "ref_model_sync_steps": refused("the reference stays as it is", "whole", 512, needs="sync_ref_model"),
    **all_of(
        unneeded("the reference is asked once, and its answers are kept with the run", needs=_JUDGED),
        precompute_ref_log_probs=False,
        precompute_ref_batch_size=None,
    ),
}


KTO: Mapping[str, Argument] = {
    "desirable_weight": copied("stage.desirable_weight", "number", 1.0, needs=_LABELS),
    "undesirable_weight": copied("stage.undesirable_weight", "number", 1.0, needs=_LABELS),
}

REWARD: Mapping[str, Argument] = {
    "center_rewards_coefficient": copied("stage.center_rewards_coefficient", "number", needs=_REWARD),
}


# what leaving an argument out means, where other commands have it too
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"learning_rate": 1e-6, "loss_type": ["sigmoid"]},
    "kto": {"learning_rate": 1e-6, "loss_type": ["kto"]},
    "rm": {"learning_rate": 1e-4},
}


def preferences(t: Translation) -> None:
    """Translate the losses on pairs and labels with their weights, and the rewards; must come after the method."""
    if t.value("stage") not in DEFAULTS:
        return
    if t.value("stage") == "dpo":
        _losses(t)
    elif t.value("stage") == "kto":
        _loss_of_labels(t)
    if t.value("disable_dropout") and t.value("use_peft"):
        t.put("method.dropout", 0.0, "disable_dropout", note="TRL switches all dropout off, the adapters' too")


def _loss_of_labels(t: Translation) -> None:
    (name, *others) = t.value("loss_type")
    if others or name not in ("kto", "apo_zero_unpaired"):
        t.refuse("loss_type", f"{', '.join([name, *others])} is none", "one of kto, apo_zero_unpaired", fatal=True)
    else:
        t.put("stage.loss_type", name, "loss_type")


def _losses(t: Translation) -> None:
    names = t.value("loss_type")
    unknown = [name for name in names if name not in (*LOSSES, "sft")]
    if unknown:
        t.refuse("loss_type", f"{unknown[0]!r} is none", f"one of {', '.join(LOSSES)}, sft", fatal=True)
        return
    given = t.value("loss_weights") or [1.0] * len(names)
    if not isinstance(given, list) or len(given) != len(names):
        t.refuse("loss_weights", f"should be a list of {len(names)} numbers, as many as loss_type has", fatal=True)
        return
    weights = dict(zip(names, map(float, given), strict=True))
    imitation = weights.pop("sft", 0.0)
    if not weights:
        t.refuse("loss_type", "sft alone is imitation", "use `trl sft`, or stage: sft", fatal=True)
        return
    alone = len(weights) == 1 and 1.0 in weights.values()
    t.put("stage.loss_type", next(iter(weights)) if alone else weights, "loss_type", "loss_weights")
    if imitation:
        t.put("stage.sft_weight", imitation, "loss_type", "loss_weights")
    _settings_of_losses(t, list(weights))


def _settings_of_losses(t: Translation, losses: list[str]) -> None:
    if t.value("label_smoothing"):
        # of these TRL smooths all but the first, which LLaMA-Factory and others smooth
        if set(losses) & (set(SMOOTHED) - {"sigmoid"}):
            t.put("stage.label_smoothing", t.value("label_smoothing"), "label_smoothing")
        else:
            t.explain("label_smoothing", f"TRL's {', '.join(losses)} takes none")
    if t.value("ld_alpha") is not None:
        t.put("stage.tail_weight", t.value("ld_alpha"), "ld_alpha")
    kind = t.value("f_divergence_type")
    if kind != "reverse_kl":
        t.put("stage.divergence", kind, "f_divergence_type")
    if kind == "alpha_divergence":
        t.put("stage.divergence_alpha", t.value("f_alpha_divergence_coef"), "f_alpha_divergence_coef")
    if "discopop" in losses:
        t.put("stage.discopop_temperature", t.value("discopop_tau"), "discopop_tau")
