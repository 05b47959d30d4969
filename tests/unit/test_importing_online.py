"""TRL's grpo, rloo and kto become the stages of these names; batches count prompts, rewards are scores."""

import re

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.importing.read import import_words
from tunesmith.scoring import SCORERS
from tunesmith.stages import STAGES

USUAL = {"model_name_or_path": "x/y", "dataset_name": "a/b", "output_dir": "o"}
REWARDED = {**USUAL, "reward_funcs": "[think_format_reward]"}


def words(command: str, values: dict) -> list[str]:
    """The flags of a command line."""
    flags = [word for name, value in values.items() for word in (f"--{name}", *str(value).strip("[]").split(", "))]
    return ["trl", command, *flags]


def imported(command: str, **values):
    found = import_words(words(command, {**REWARDED, **values}))
    return STAGES.parse(found.values["stage"]), found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"loss_type": "dapo", "num_generations": 8, "beta": 0.0, "epsilon": 0.2}),
        ({"loss_type": "dr_grpo", "scale_rewards": "False"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, {"loss_type": "cispo", "epsilon_high": 5.0}),
        ({"importance_sampling_level": "sequence"}, {"importance_sampling_level": "sequence"}),
        ({"num_iterations": 2, "delta": 1.5, "beta": 0.04}, {"num_iterations": 2, "delta": 1.5, "beta": 0.04}),
        ({"mask_truncated_completions": True}, {"mask_truncated_completions": True}),
    ],
)
def test_grpos_losses_are_what_they_say(values, expected):
    stage, _ = imported("grpo", **values)

    assert stage.type_name() == "grpo"
    assert expected.items() <= dict(stage).items()


def test_rloo_has_its_own_defaults():
    stage, found = imported("rloo", normalize_advantages=True, reward_clip_range="[-1, 1]")

    assert (stage.type_name(), stage.num_generations, stage.beta) == ("rloo", 2, 0.05)
    assert stage.normalize_advantages
    assert stage.reward_clip_range == (-1, 1)
    assert found.values["schedule"]["learning_rate"] == 1e-6


def test_sampling_is_what_it_was():
    stage, found = imported("grpo", max_completion_length=200, temperature=0.7, top_p=0.9, top_k=20, min_p=0.1)
    sampling = stage.sampling

    assert (sampling.max_new_tokens, sampling.temperature) == (200, 0.7)
    assert (sampling.top_p, sampling.top_k, sampling.min_p) == (0.9, 20, 0.1)
    assert found.values["data"]["max_tokens"] > 200


def test_a_batch_is_prompts_where_trl_counts_answers():
    """16 a device, twice accumulated, in groups of 4: the answers to 8 prompts; other numbers make no groups."""
    _, found = imported(
        "grpo",
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_generations=4,
        generation_batch_size=32,
    )

    assert found.values["schedule"]["batch_size"] == 8
    with pytest.raises(RecipeError, match="num_generations: 8 answers a step are no whole number of groups of 3"):
        imported("grpo", num_generations=3)
    with pytest.raises(RecipeError, match="steps_per_generation: answers are written for the step"):
        imported("grpo", steps_per_generation=4)
    with pytest.raises(RecipeError, match="generation_batch_size: answers are written for the step"):
        imported("grpo", generation_batch_size=64)


def test_rewards_keep_order_and_weights(tmp_path):
    """The model that rewards comes first, as in TRL's script."""
    path = tmp_path / "grpo.yaml"
    path.write_text(
        "model_name_or_path: x/y\ndataset_name: a/b\noutput_dir: o\nreward_weights: [1.0, 0.5]\n"
        "reward_funcs: [think_format_reward]\nreward_model_name_or_path: a/judge\n",
        "utf-8",
    )
    found = import_words([str(path)])
    model, form = STAGES.parse(found.values["stage"]).rewards

    assert (model.score.type_name(), model.score.judge_model(), model.weight) == ("reward_model", "a/judge", 1.0)
    assert (form.score.type_name(), form.weight) == ("regular_expression", 0.5)
    assert "taken for trl grpo, whose arguments trl rloo has too" in found.text
    assert "its logistic counts" in found.text


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("<think>\nSo.\n</think>\nYes.", 1),
        ("<think>So.</think>", 1),
        ("<think>So.", 0),
        ("Yes.", 0),
        ("<think><think>So.</think>Yes.", 0),
        ("Well <think>So.</think>Yes.", 0),
    ],
)
def test_the_form_of_thoughts_is_judged_as_trl_judges_it(answer, value):
    stage, _ = imported("grpo")
    (reward,) = stage.rewards

    assert SCORERS.parse(reward.score.model_dump()).score(None, answer).value == value


def test_the_penalty_of_long_answers_is_trls_where_its_length_is():
    stage, _ = imported(
        "grpo", reward_funcs="[think_format_reward, get_soft_overlong_punishment]", max_completion_length=1280
    )

    assert stage.overlong_margin == 256
    assert len(stage.rewards) == 1


def test_a_divergence_that_is_another_is_told():
    _, plain = imported("grpo")
    _, compared = imported("grpo", beta=0.1)
    _, same = imported("grpo", beta=0.1, use_bias_correction_kl=False)

    assert "use_bias_correction_kl: false" in compared.text
    assert "use_bias_correction_kl" not in plain.text + same.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_type": "vespo"}, "loss_type: vespo has no equal"),
        ({"reward_funcs": "rewards.mine"}, "path: rewards:mine"),
        ({"reward_funcs": "accuracy_reward"}, "reward_funcs: accuracy_reward: it has no equal"),
        ({"reward_funcs": "get_soft_overlong_punishment"}, "TRL's counts from 1280 tokens"),
        ({"reward_weights": "[1.0, 2.0]"}, "reward_weights: should be a list of 1 numbers"),
        ({"entropy_coef": 0.1}, "entropy_coef: there is no entropy bonus"),
        ({"repetition_penalty": 1.1}, "repetition_penalty: the loss would not know of it"),
        ({"max_tool_calling_iterations": 3}, "max_tool_calling_iterations: answers are sampled without calling tools"),
    ],
)
def test_what_has_no_equal_is_refused(values, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        imported("grpo", **values)


def test_without_a_reward_there_is_nothing_to_learn():
    with pytest.raises(RecipeError, match="nothing is left that says what an answer is worth"):
        import_words(words("grpo", USUAL))


def test_kto_keeps_its_weights():
    """Known by them where the command is not there."""
    values = {**USUAL, "undesirable_weight": 1.5, "beta": 0.2}
    told, guessed = import_words(words("kto", values)), import_words(words("kto", values)[2:], program="trl")
    stage = STAGES.parse(told.values["stage"])

    assert told.values == guessed.values
    assert (stage.type_name(), stage.undesirable_weight, stage.beta) == ("kto", 1.5, 0.2)
    assert told.values["schedule"]["learning_rate"] == 1e-6


def test_a_file_without_its_command_is_read_as_with_it(tmp_path):
    """What leaving an argument out means depends on the command: beta of DPO was lost."""
    path = tmp_path / "dpo.yaml"
    path.write_text("model_name_or_path: x/y\ndataset_name: a/b\noutput_dir: o\nbeta: 0.3\nloss_type: ipo\n", "utf-8")
    alone, told = import_words([str(path)], program="trl"), import_words(["trl", "dpo", "--config", str(path)])

    assert alone.values == told.values
    assert alone.values["stage"] == {"type": "dpo", "loss_type": "ipo", "beta": 0.3}
