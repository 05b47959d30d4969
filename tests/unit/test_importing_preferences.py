"""Preference training of LLaMA-Factory and TRL becomes the stage that its configuration names."""

import re

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.methods import METHODS
from tunesmith.recipe.importing.read import import_words
from tunesmith.stages import STAGES

FACTORY = {"model_name_or_path": "x/y", "dataset": "pairs", "dataset_dir": "ONLINE", "stage": "dpo", "output_dir": "o"}


def imported(tmp_path, **values):
    """The recipe of a LLaMA-Factory file with these values."""
    path = tmp_path / "factory.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in {**FACTORY, **values}.items()), "utf-8")
    return import_words([str(path)])


def stage_of(found):
    """The stage of what was imported, and its name."""
    stage = STAGES.parse(found.values.get("stage", "sft"))
    return {"type": stage.type_name(), **dict(stage)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"type": "dpo"}),
        ({"pref_loss": "hinge"}, {"type": "dpo", "loss_type": "hinge"}),
        ({"pref_loss": "ipo", "pref_beta": 0.3}, {"type": "dpo", "loss_type": "ipo", "beta": 0.3}),
        ({"pref_ftx": 0.5, "dpo_label_smoothing": 0.1}, {"type": "dpo", "sft_weight": 0.5, "label_smoothing": 0.1}),
        ({"ld_alpha": 0.4, "ref_model": "a/b"}, {"type": "dpo", "tail_weight": 0.4, "reference": "a/b"}),
        ({"pref_loss": "orpo"}, {"type": "orpo"}),
        ({"pref_loss": "orpo", "pref_ftx": 0.5}, {"type": "orpo", "sft_weight": 1.5}),
        ({"pref_loss": "simpo", "simpo_gamma": 0.7}, {"type": "simpo", "beta": 0.1, "margin": 0.7}),
        ({"stage": "kto", "kto_rejected_weight": 1.3}, {"type": "kto", "undesirable_weight": 1.3}),
    ],
)
def test_llamafactorys_losses_are_what_they_say(values, expected, tmp_path):
    """Hinge is hinge and IPO is IPO; what needs no reference is a stage of its own."""
    assert expected.items() <= stage_of(imported(tmp_path, **values)).items()


def test_hinge_says_that_llamafactory_trains_another(tmp_path):
    text = imported(tmp_path, pref_loss="hinge").text

    assert "LLaMA-Factory with a current TRL trains sigmoid in its place, without a word" in text


def test_an_adapter_that_goes_on_is_measured_against_its_base(tmp_path):
    """LLaMA-Factory switches the adapter off to have the reference."""
    found = imported(tmp_path, adapter_name_or_path="a/b", finetuning_type="lora")

    assert found.values["stage"]["reference"] == "base"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pref_bco_weight": 0.5}, "pref_bco_weight: its shift is a moving average"),
        ({"stage": "kto", "pref_ftx": 0.5}, "pref_ftx: kto is not mixed with imitation here"),
        ({"ref_model": "a/b", "ref_model_adapters": "c/d"}, "ref_model_adapters: a reference is one model"),
        ({"pref_loss": "simpo", "ld_alpha": 0.5}, "ld_alpha: it would change what simpo"),
    ],
)
def test_what_has_no_equal_is_refused(values, message, tmp_path):
    with pytest.raises(RecipeError, match=re.escape(message)):
        imported(tmp_path, **values)


TRL = ["trl", "dpo", "--model_name_or_path", "x/y", "--dataset_name", "a/b", "--output_dir", "o"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"type": "dpo"}),
        (["--loss_type", "hinge", "--beta", "0.3"], {"loss_type": "hinge", "beta": 0.3}),
        (["--loss_type", "robust", "--label_smoothing", "0.1"], {"loss_type": "robust", "label_smoothing": 0.1}),
        (["--f_divergence_type", "js_divergence", "--ld_alpha", "0.5"], {"divergence": "js_divergence"}),
        (["--loss_type", "discopop", "--discopop_tau", "0.1"], {"discopop_temperature": 0.1}),
    ],
)
def test_trls_losses_are_what_they_say(words, expected):
    assert expected.items() <= stage_of(import_words([*TRL, *words])).items()


def test_trls_mixtures_keep_their_weights(tmp_path):
    """MPO: several losses, of which sft is imitation; smoothing that TRL's sigmoid does not take is left out."""
    path = tmp_path / "trl.yaml"
    path.write_text(
        "model_name_or_path: x/y\ndataset_name: a/b\noutput_dir: o\nlabel_smoothing: 0.1\n"
        "loss_type: [sigmoid, bco_pair, sft]\nloss_weights: [0.8, 0.2, 1.0]\nuse_peft: true\nlora_dropout: 0.2\n",
        "utf-8",
    )
    found = import_words(["trl", "dpo", "--config", str(path)])

    assert found.values["stage"]["loss_type"] == {"sigmoid": 0.8, "bco_pair": 0.2}
    assert found.values["stage"]["sft_weight"] == 1.0
    assert "label_smoothing" not in found.values["stage"]
    assert METHODS.parse(found.values["method"]).dropout == 0.0
    assert found.values["schedule"]["learning_rate"] == 1e-6


def test_trls_own_ways_are_refused():
    with pytest.raises(RecipeError, match="use_weighting: pairs are not weighted by their likelihood"):
        import_words([*TRL, "--use_weighting"])
    with pytest.raises(RecipeError, match="loss_type: 'sigmod' is none"):
        import_words([*TRL, "--loss_type", "sigmod"])
