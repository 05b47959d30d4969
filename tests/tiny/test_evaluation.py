"""A run's evaluation: base and tuned answer freely, and the tuned one once more where a constraint is asked for."""

import json

from tunesmith.run.evaluate import Questions, compare, held_out, make_scores
from tunesmith.run.train import train


def test_a_constraint_adds_a_column_and_leaves_the_others_free(make_recipe):
    """Scores see the training data; what they have to say about parts of an answer is kept beside it."""
    choices = ["a boat on the river", "on the river a boat"]
    generation = {"max_new_tokens": 24, "constraint": {"type": "choice", "choices": choices}}
    scores = ["length_match", {"type": "novelty", "longest": 2}, "distinct_n"]
    recipe = make_recipe(evaluation={"examples": 3, "scores": scores, "generation": generation})
    run = train(recipe).folder
    found = run.read("evaluation.json")
    columns = ["base", "tuned", "tuned + choice"]

    assert found["models"] == columns
    assert {name: list(values) for name, values in found["scores"].items()} == dict.fromkeys(
        ("length_match", "novelty", "distinct_n"), columns
    )
    assert found["loss"]["tuned + choice"] == found["loss"]["tuned"] != found["loss"]["base"]
    for row in found["rows"]:
        assert row["answers"]["tuned + choice"] in choices
        assert row["answers"]["tuned"] not in choices
        copied = row["spans"].get("tuned + choice", {}).get("novelty", [])
        assert bool(copied) == (row["scores"]["novelty"]["tuned + choice"] < 1)
    assert any(row["spans"].get("tuned + choice") for row in found["rows"])
    assert "<mark>" in (run.path / "report.html").read_text("utf-8")

    conversations, source = held_out((), [str(run.path)])
    questions = Questions(
        conversations=conversations, source=source, answered=3, generation=recipe.evaluation.generation, limit=160
    )
    again = compare(
        {"run": str(run.path)}, questions, make_scores([json.dumps(scores[1]), "length_match"]), device="cpu"
    )

    assert [row["answers"]["run"] for row in again["rows"]] == [
        row["answers"]["tuned + choice"] for row in found["rows"]
    ]
    assert again["scores"]["novelty"]["run"] == found["scores"]["novelty"]["tuned + choice"]
