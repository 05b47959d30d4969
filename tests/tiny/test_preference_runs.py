"""Preference training as runs: one loss curve for all layouts, bit by bit after a resume, refusals, the plan."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from preference_pairs import asking, conversations, make_pairs, write_pairs

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import read_jsonl
from tunesmith.recipe.read import read_recipe
from tunesmith.run.demo_corpus import write_demo_data
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train
from tunesmith.stages import STAGES
from tunesmith.templates.chat import ChatTemplate

LAYOUTS = ("prefix", "packed", "padded", "single")
RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "preferences").glob("*.yaml"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, str]:
    """Files of 16 training pairs and 4 for validation."""
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def template(tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


def preference_run(make_recipe, pairs, **blocks):
    usual = {"data": {**pairs}, "stage": {"type": "dpo"}, "schedule": {"steps": 4, "batch_size": 4}}
    return make_recipe(**{**usual, **blocks})


@pytest.mark.parametrize(
    "stage",
    [
        {"type": "dpo", "loss_type": "ipo"},
        {"type": "dpo", "sft_weight": 1, "loss_type": "aot"},
        {"type": "kto"},
        {"type": "orpo"},
        {"type": "simpo"},
        {"type": "cpo"},
    ],
    ids=lambda stage: f"{stage['type']}-{stage.get('loss_type', '')}",
)
def test_every_stage_trains_validates_and_says_what_it_rewards(stage, make_recipe, pairs):
    recipe = preference_run(make_recipe, pairs, stage=stage)
    assert train(recipe).complete
    metrics = read_jsonl(recipe.output / "metrics.jsonl")

    for line in metrics:
        named = {"rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy"}
        assert named <= line.keys()
        assert np.isfinite(line["loss"])
        assert "perplexity" not in line
    steps = [line["loss"] for line in metrics if line["kind"] == "step"]
    assert (recipe.output / "weights" / "adapter_model.safetensors").exists()
    assert len(set(steps)) == len(steps)
    report = (recipe.output / "report.html").read_text("utf-8")
    assert "rewards/accuracy" in report


@pytest.mark.parametrize("method", ["full", {"type": "lora", "rank": 4, "dropout": 0.1}], ids=["full", "lora"])
@pytest.mark.parametrize("stage", [{"type": "dpo"}, {"type": "kto"}], ids=["dpo", "kto"])
def test_a_run_killed_goes_on_bit_by_bit(stage, method, make_recipe, pairs, measured):
    """Reference log-probabilities are kept in the run's folder: a resumed run reads the same numbers."""

    class Killed(BaseException):
        pass

    def die(event) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            raise Killed

    whole, killed = (
        preference_run(make_recipe, pairs, name=name, stage=stage, method=method) for name in ("whole", "killed")
    )
    train(whole)
    with pytest.raises(Killed):
        train(killed, die)
    # the file is what counts: not what the model would say now
    kept = json.loads((killed.output / "reference.json").read_text("utf-8"))
    assert len([kept for kept in kept["train"] if kept]) == 16
    assert resume(killed.output).complete

    assert measured(whole.output) == measured(killed.output)
    weights = [next((run.output / "weights").glob("*.safetensors")).read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]


def losses(recipe) -> list[float]:
    return [line["loss"] for line in read_jsonl(recipe.output / "metrics.jsonl")]


def test_one_loss_curve_for_all_layouts(make_recipe, pairs):
    curves = []
    for layout in LAYOUTS:
        engine = {"layout": layout, "tokens_per_pass": 300}
        recipe = preference_run(make_recipe, pairs, name=layout, engine=engine, method={"type": "lora", "rank": 4})
        train(recipe)
        curves.append(losses(recipe))

    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-4)


def test_the_loss_begins_where_model_and_reference_are_one(make_recipe, pairs):
    """At the first step the log-ratios are zero, whatever the method and the precision of the base."""
    methods = ["full", {"type": "lora", "rank": 4}]
    for number, method in enumerate(methods):
        recipe = preference_run(make_recipe, pairs, name=f"run{number}", method=method, schedule={"steps": 1})
        train(recipe)

        assert losses(recipe)[0] == pytest.approx(np.log(2), abs=1e-4)


def test_another_model_may_be_the_reference(make_recipe, pairs, saved_model, tmp_path):
    """Against a reference of its own the first loss is another; one with other tokens is refused."""
    other = tmp_path / "other"
    shutil.copytree(saved_model("qwen3-tied"), other)
    recipe = preference_run(make_recipe, pairs, stage={"type": "dpo", "reference": str(other)}, schedule={"steps": 1})
    train(recipe)

    assert abs(losses(recipe)[0] - np.log(2)) > 1e-2
    with pytest.raises(RecipeError, match=r"stage\.reference: .*nowhere"):
        preference_run(make_recipe, pairs, stage={"type": "dpo", "reference": str(tmp_path / "nowhere")})
    with pytest.raises(RecipeError, match=r"stage\.reference: full has no adapter"):
        preference_run(make_recipe, pairs, stage={"type": "dpo", "reference": "base"}, method="full")


def test_early_stopping_watches_the_preference_loss(make_recipe, pairs):
    recipe = preference_run(
        make_recipe, pairs, schedule={"steps": 12}, evaluation={"every": 1, "patience": 2, "minimum_gain": 9}
    )

    assert train(recipe).reason == "early stopping"
    found = json.loads((recipe.output / "evaluation.json").read_text("utf-8"))
    assert found["loss"]["base"] == pytest.approx(np.log(2), abs=1e-4)
    assert not found["perplexity"]


def test_a_quantized_base_learns_preferences_and_its_adapter_merges(make_recipe, pairs, saved_model):
    """QLoRA: the base is the reference; what was trained loads again, merged, too."""
    recipe = preference_run(
        make_recipe, pairs, model={"path": str(saved_model("llama")), "quantization": "nf4"}, schedule={"steps": 2}
    )
    train(recipe)

    assert losses(recipe)[0] == pytest.approx(np.log(2), abs=1e-4)
    assert load_contestant(str(recipe.output), "cpu").model is not None


def test_a_merged_adapter_prefers_as_the_adapter_does(make_recipe, pairs, template):
    recipe = preference_run(make_recipe, pairs, schedule={"steps": 6, "learning_rate": 1e-2})
    train(recipe)
    given = [e for each in STAGES.get("simpo")().examples(conversations(make_pairs(4)), template, 512) for e in each]
    apart, merged = (
        asking(model if not hasattr(model, "get_base_model") else model.merge_and_unload())(given)
        for model in (load_contestant(str(recipe.output), "cpu", merge=merge).model for merge in (False, True))
    )

    assert np.array(apart) == pytest.approx(np.array(merged), abs=1e-3)


# --- what is refused, and the plan


def test_preference_stages_refuse_data_without_pairs(make_recipe, data, pairs, tmp_path):
    """Told with file and line, and what would be right, before a weight loads."""
    labelled = tmp_path / "labelled.json"
    labelled.write_text(json.dumps([{"prompt": "a", "completion": "b", "label": False}] * 3), "utf-8")
    for name in ("dpo", "orpo", "simpo", "cpo"):
        with pytest.raises(DataError, match=rf"train\.json:\d+: {name} learns from pairs, but this row has one answer"):
            settle(make_recipe(stage=name))
    with pytest.raises(DataError, match=r"has one answer and a label .*; use stage: kto"):
        settle(make_recipe(stage="dpo", data={"train": str(labelled), "validation": []}))
    with pytest.raises(DataError, match=r"kto learns from answers that were liked or not, .* \(24 of 24 rows\)"):
        settle(make_recipe(stage="kto"))
    with pytest.raises(DataError, match=r"label says that it was not liked \(3 of 3 rows\); use stage: kto"):
        settle(make_recipe(data={"train": str(labelled), "validation": []}))
    plan = settle(make_recipe(data=pairs)).plan

    assert "16 rows are pairs: their chosen answers are learnt; stage: dpo learns the preference, too" in plan.notices


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"label_smoothing": 0.1, "loss_type": "hinge"}, "label_smoothing: is not for hinge"),
        ({"loss_type": "exo_pair"}, "label_smoothing: exo_pair needs some"),
        ({"divergence": "forward_kl", "loss_type": "apo_zero"}, "divergence: is not for apo_zero"),
        ({"divergence_alpha": 0.3}, "divergence_alpha: means nothing to reverse_kl"),
        ({"discopop_temperature": 0.3}, "discopop_temperature: is not for sigmoid"),
        ({"tail_weight": 0.5, "sft_weight": 1}, "tail_weight: would change what lengths and imitation count"),
        ({"loss_type": {"aot": 1, "aot_unpaired": 1}}, "loss_type: aot and aot_unpaired sort the step in two ways"),
    ],
)
def test_a_setting_that_a_loss_does_not_take_is_refused(stage, message, make_recipe, pairs):
    with pytest.raises(RecipeError, match=message):
        preference_run(make_recipe, pairs, stage={"type": "dpo", **stage})


def test_the_plan_says_what_the_reference_takes_and_a_lower_rate(make_recipe, pairs):
    values = {"steps": 2, "batch_size": 3, "learning_rate": None}
    plan = settle(preference_run(make_recipe, pairs, schedule=values)).plan
    (notice,) = [notice for notice in plan.notices if notice.startswith("reference:")]

    assert "says how likely it finds 10 examples, once before the first step" in notice
    assert plan.learning_rate == pytest.approx(0.05 * 2e-4)
    assert plan.memory is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_of_preferences_can_be_planned(path, tmp_path, monkeypatch, saved_model):
    """On the demo's data, beside any model."""
    monkeypatch.chdir(tmp_path)
    write_demo_data(Path("runs/demo/data"), corpus_lines=2, train_couplets=8, test_couplets=4)
    for name in ("base", "couplets"):
        shutil.copytree(saved_model("qwen3"), Path("runs/demo") / name)
    settled = settle(read_recipe(path))

    assert settled.plan.recipe.stage.type_name() == path.stem
    assert settled.prepared.train.counts["conversations"] == 8
