"""LLaMA-Factory's arguments of preferences and rewards, and the rules that make a stage of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.recipe.importing.argument import Argument, copied, refused, ruled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.recipe.importing.translation import Translation

_JUDGED, _PAIRS = "stage=dpo|kto", "stage=dpo"
_REFERENCE = "stage=dpo|ppo|kto"
_PPO = "stage=ppo"
_REWARD = "rewards are scores: train with stage: reward, then stage.rewards=[{score: {type: reward_model, model: RUN}}]"
_MERGE = "make it one model first (tunesmith adapter merge), and name that"

PREFERENCES: Mapping[str, Argument] = {
    "pref_beta": ruled("stage.beta", "number", 0.1, needs=_JUDGED),
    "pref_ftx": ruled("stage.sft_weight", "number", 0.0, needs=_JUDGED),
    "pref_bco_weight": refused(
        "its shift is a moving average of earlier batches; stage.loss_type={sigmoid: 1, bco_pair: 0.5} has none",
        "number",
        0.0,
        needs=_PAIRS,
    ),
    "pref_loss": ruled("stage.loss_type", "text", "sigmoid", needs=_PAIRS),
    "dpo_label_smoothing": ruled("stage.label_smoothing", "number", 0.0, needs=_PAIRS),
    "ld_alpha": ruled("stage.tail_weight", "number", needs=_PAIRS),
    "simpo_gamma": ruled("stage.margin", "number", 0.5, needs="pref_loss=simpo"),
    "kto_chosen_weight": copied("stage.desirable_weight", "number", 1.0, needs="stage=kto"),
    "kto_rejected_weight": copied("stage.undesirable_weight", "number", 1.0, needs="stage=kto"),
    "ppo_buffer_size": refused("each step writes its own answers: schedule.batch_size prompts", "whole", 1, needs=_PPO),
    "ppo_epochs": refused("set stage.num_iterations, beside stage.rewards", "whole", 4, needs=_PPO),
    "ppo_score_norm": refused("rewards are scores in [0, 1]; no running mean is taken", "flag", False, needs=_PPO),
    "ppo_target": refused("the weight of the divergence (stage.beta) stays what it is", "number", 6.0, needs=_PPO),
    "ppo_whiten_rewards": refused("advantages are normalised, rewards are not", "flag", False, needs=_PPO),
    "ref_model": ruled("stage.reference", "text", needs=_REFERENCE),
    "ref_model_adapters": refused(f"a reference is one model; {_MERGE}", "text", needs=_REFERENCE),
    "ref_model_quantization_bit": refused(
        "the reference is loaded as its files are, asked once, and freed before training", "whole", needs=_REFERENCE
    ),
    "reward_model": refused(_REWARD, "text", needs=_PPO),
    "reward_model_adapters": refused(_REWARD, "text", needs=_PPO),
    "reward_model_quantization_bit": refused(_REWARD, "whole", needs=_PPO),
    "reward_model_type": refused(_REWARD, "text", "lora", needs=_PPO),
}
_WITHOUT_REFERENCE = ("orpo", "simpo")
_LOSSES = ("sigmoid", "hinge", "ipo")
# current versions hand the name to TRL, which looks for it elsewhere by now
_LOST = "what the name says; LLaMA-Factory with a current TRL trains sigmoid in its place, without a word"
_EACH = "LLaMA-Factory takes the mean over each answer first, this the mean over all tokens of a step"


def preferences(t: Translation) -> None:
    """Translate the loss on pairs or labels: a stage of its own where it needs no reference."""
    if t.value("stage") == "kto":
        t.put("stage.beta", t.value("pref_beta"), "pref_beta")
        if t.value("pref_ftx"):
            t.refuse("pref_ftx", "kto is not mixed with imitation here", "leave it out, or use pairs: stage dpo")
        _reference(t)
    elif t.value("stage") == "dpo":
        _pairs(t)


def _pairs(t: Translation) -> None:
    loss = t.value("pref_loss")
    if loss not in (*_LOSSES, *_WITHOUT_REFERENCE):
        hint = "use stage: kto" if loss == "kto_pair" else f"one of {', '.join((*_LOSSES, *_WITHOUT_REFERENCE))}"
        t.refuse("pref_loss", f"{loss!r} is no loss of this or of a current TRL", hint, fatal=True)
        return
    t.put("stage.beta", t.value("pref_beta"), "pref_beta")
    imitation = t.value("pref_ftx") + (1 if loss == "orpo" else 0)
    if imitation:
        t.put("stage.sft_weight", imitation, "pref_ftx", note=_EACH)
    if loss in _WITHOUT_REFERENCE:
        _without_reference(t, loss)
    else:
        t.put("stage.loss_type", loss, "pref_loss", note=_LOST if loss != "sigmoid" else "")
        _reference(t)
    smoothing, tail = "dpo_label_smoothing", "ld_alpha"
    if t.value(smoothing) and loss == "sigmoid":
        t.put("stage.label_smoothing", t.value(smoothing), smoothing)
    elif t.value(smoothing):
        t.explain(smoothing, f"{loss} takes none")
    if t.value(tail) is not None and loss in ("sigmoid", "hinge") and not imitation:
        t.put("stage.tail_weight", t.value(tail), tail)
    elif t.value(tail) is not None:
        t.refuse(tail, f"it would change what {loss} or pref_ftx count", "leave one of them out")


def _without_reference(t: Translation, loss: str) -> None:
    t.put("stage.type", loss, "pref_loss")
    if loss == "simpo":
        t.put("stage.margin", t.value("simpo_gamma"), "simpo_gamma")
    if t.said("ref_model"):
        t.explain("ref_model", f"{loss} measures against none")


def _reference(t: Translation) -> None:
    if t.said("ref_model"):
        t.put("stage.reference", t.value("ref_model"), "ref_model")
    elif t.value("adapter_name_or_path") and not t.value("create_new_adapter"):
        note = "LLaMA-Factory switches the adapter off; start would be the adapter as it is"
        t.put("stage.reference", "base", "adapter_name_or_path", note=note)
