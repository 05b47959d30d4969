"""On-policy distillation: TRL's loss on the student's own tokens, who answers what, and runs that can be killed."""

import json
import shutil
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from preference_pairs import distance
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import read_jsonl
from tunesmith.data.conversation import Conversation, Message
from tunesmith.engine.divergence import Teacher
from tunesmith.engine.likelihoods import Alone
from tunesmith.engine.model import PackModel
from tunesmith.engine.objective import pass_loss
from tunesmith.engine.pack import build_packs
from tunesmith.generation.policy import Policy
from tunesmith.recipe.read import read_recipe
from tunesmith.run.demo_corpus import write_demo_data
from tunesmith.run.rollout_watch import RolloutWatch
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train
from tunesmith.stages import STAGES
from tunesmith.templates.chat import ChatTemplate

TOLERANCE = 1e-5
WORDS = ["mist", "hill", "pine tree", "moon on a boat", "rain", "a river"]


def as_stage(**settings):
    sampling = {"max_new_tokens": 9, "temperature": 0.8}
    return STAGES.parse({"type": "gkd", "teacher": "x", "sampling": sampling, **settings})


def conversations() -> list[Conversation]:
    return [
        Conversation((Message("user", f"Write the words again: {word}"), Message("assistant", f"{word}.")))
        for word in WORDS
    ]


@pytest.fixture(scope="module")
def models(saved_model):
    """A student and a teacher of another architecture, over the same tokens."""
    return tuple(
        AutoModelForCausalLM.from_pretrained(saved_model(name), dtype=torch.float32).eval()
        for name in ("llama", "gpt2")
    )


def policy_of(model, tokenizer, seed: int = 3) -> Policy:
    packed = PackModel(model, model).eval()
    alone = Alone(torch.device("cpu"))
    return Policy(packed, ChatTemplate(tokenizer), alone, layout="prefix", tokens_per_pass=4096, seed=seed)


def prompts_of(stage, tokenizer):
    return [e for each in stage.examples(conversations(), ChatTemplate(tokenizer), 512) for e in each]


def trl_loss(models, examples, beta: float):
    """What TRL's trainer computes of the same tokens as one batch filled up on the right, and the gradients."""
    from trl.experimental.gkd import GKDTrainer

    sequences = [sequence for example in examples for sequence in example.sequences]
    width = max(map(len, sequences))
    tokens, mask, labels = (np.full((len(sequences), width), fill) for fill in (0, 0, -100))
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)], mask[row, : len(sequence)] = sequence.tokens, 1
        labels[row, : len(sequence)] = np.where(sequence.weight > 0, sequence.tokens, -100)
    inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}
    loss_of = GKDTrainer.generalized_jsd_loss
    trainer = SimpleNamespace(teacher_model=models[1], beta=beta, generalized_jsd_loss=loss_of)
    models[0].zero_grad()
    loss = GKDTrainer.compute_loss(trainer, models[0], inputs)
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in models[0].named_parameters() if p.grad is not None}


def our_loss(stage, models, examples, layout: str):
    packed = PackModel(models[0], models[0]).eval()
    packed.teacher = Teacher(PackModel(models[1], models[1]), stage.beta, stage.temperature)
    models[0].zero_grad()
    total, parts, size = 0.0, {}, stage.size(examples)
    for pack in build_packs(examples, layout, 150):
        loss = pass_loss(packed, stage, pack.to("cpu"))
        (loss.total / size).backward()
        total += float(loss.total.detach()) / size
        for name, value in loss.parts.items():
            parts[name] = parts.get(name, 0.0) + float(value) / size
    return total, {n: p.grad.clone() for n, p in models[0].named_parameters() if p.grad is not None}, parts


@pytest.mark.parametrize("layout", ["prefix", "packed", "padded"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_on_the_students_tokens_the_loss_is_that_of_trl(beta, layout, models, tokenizer, monkeypatch):
    """Of a batch where some answers are the student's and some the data's; each kind's own mean is told beside it."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    stage = as_stage(beta=beta, num_generations=2)
    examples, _, rollouts = stage.experience((0, 1), prompts_of(stage, tokenizer), policy_of(models[0], tokenizer))
    own = {id(e) for e in examples if e.values[0].own}
    assert 0 < len(rollouts) == len(own) < len(examples)
    expected, gradients = trl_loss(models, examples, beta)

    found, ours, parts = our_loss(stage, models, examples, layout)

    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert distance(ours, gradients) < TOLERANCE
    assert parts["divergence"] == pytest.approx(found)
    for name, kind in (("divergence_own", True), ("divergence_data", False)):
        alone, _ = trl_loss(models, [e for e in examples if (id(e) in own) == kind], beta)
        assert parts[name] == pytest.approx(alone, abs=TOLERANCE)


def test_a_fully_on_policy_loss_at_another_temperature(models, tokenizer, monkeypatch):
    """The divergence has its own temperature; that of the sampling stays out of it."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    stage = as_stage(beta=0.5, temperature=2.0, student_share=1.0)
    examples, measured, rollouts = stage.experience(
        (0, 0), prompts_of(stage, tokenizer), policy_of(models[0], tokenizer)
    )
    own, theirs = [], []
    for rollout in rollouts:
        sequence = rollout.sequence()
        tokens, at = torch.tensor(sequence.tokens.tolist())[None], torch.tensor(np.flatnonzero(sequence.weight))
        with torch.no_grad():
            own.append(models[0](tokens).logits[0, at - 1])
            theirs.append(models[1](tokens).logits[0, at - 1])
    expected = GKDTrainer.generalized_jsd_loss(
        torch.cat(own), torch.cat(theirs), beta=0.5, temperature=2.0, reduction="batchmean"
    )

    assert measured == {"own_answers": 1.0}
    assert our_loss(stage, models, examples, "prefix")[0] == pytest.approx(float(expected), abs=TOLERANCE)


def test_who_answers_is_a_matter_of_seed_and_step(models, tokenizer):
    def who(stage, step: int, seed: int = 3) -> list[bool]:
        asked = prompts_of(stage, tokenizer) * 20
        stand_in = SimpleNamespace(
            seed=seed, template=ChatTemplate(tokenizer), sample=written, read=lambda asked: [""] * len(asked)
        )
        return [e.values[0].own for e in stage.experience((0, step), asked, stand_in).examples]

    def written(asked, count, sampling, turn):
        answer = SimpleNamespace(tokens=np.array([7], np.int32))
        return [[answer] * count for _ in asked]

    stage = as_stage(student_share=0.25)
    first = who(stage, 4)
    assert first == who(stage, 4)
    assert first not in (who(stage, 5), who(stage, 4, seed=4))
    assert 0.15 < np.mean([who(stage, step) for step in range(5)]) < 0.35
    assert all(who(as_stage(student_share=1), 4))
    assert not any(who(as_stage(student_share=0), 4))


def test_examples_are_those_of_distill_with_their_conversation(tokenizer):
    """Prompts that leave no room for an answer are left out; what the data say of turns counts as ever."""
    turns = (Message("user", "mist"), Message("assistant", "mist."), Message("user", "hill"))
    talk = Conversation((*turns, Message("assistant", "hill.")))
    long = Conversation((Message("user", "rain" * 50), Message("assistant", "rain.")))
    template = ChatTemplate(tokenizer)
    (example,), none = as_stage().examples([talk, long], template, 120)
    (expected,), _ = STAGES.parse({"type": "distill", "teacher": "x"}).examples([talk, long], template, 120)
    prompt, text = example.values

    assert none == []
    assert [s.tokens.tolist() for s in example.sequences] == [s.tokens.tolist() for s in expected.sequences]
    assert [s.weight.tolist() for s in example.sequences] == [s.weight.tolist() for s in expected.sequences]
    assert template.prompts([talk])[0] == example.sequences[-1].tokens[:prompt].tolist()
    assert json.loads(text)["messages"][-1]["content"] == "hill."
    with pytest.raises(DataError, match="plain text, not a dialogue"):
        as_stage().examples([Conversation(text="rain")], template, 120)


def test_where_nothing_is_rewarded_a_change_of_length_and_copying_are_no_alarm():
    plain = [f"answer {n} of the moon and the pine {n * 7}" for n in range(8)]
    watch = RolloutWatch(plain, rewarded=False)

    looked = [watch.look(step, plain, [tokens] * 8) for step, tokens in enumerate([20] * 5 + [60, 5])]

    assert [measured["copied"] for measured, _ in looked] == [1.0] * 7
    assert [alarms for _, alarms in looked] == [[]] * 7
    assert "it repeats" in watch.look(8, [f"{n}" + "ha" * 30 for n in range(8)], [20] * 8)[1][0]


# --- whole runs

RUN = {
    "schedule": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
    "evaluation": {"examples": 0, "every": 2},
    "checkpoints": {"every": 1, "keep": 9},
}


def gkd(saved_model, **settings):
    sampling = {"max_new_tokens": 8}
    return {"type": "gkd", "teacher": str(saved_model("gpt2")), "sampling": sampling, "record_every": 2, **settings}


def without_clock(rows):
    return [{k: v for k, v in row.items() if k != "rollout_seconds"} for row in rows]


@pytest.mark.parametrize("method", [{"type": "lora", "rank": 4, "dropout": 0.1}, "full"], ids=["lora", "full"])
def test_a_run_that_was_killed_goes_on_bit_by_bit(method, make_recipe, saved_model, measured, trained_weights):
    """With its answers in ``samples/`` and in the report, which speaks of no reward."""
    stage = gkd(saved_model, beta=0.5, num_generations=2)
    whole = train(make_recipe("whole", stage=stage, method=method, **RUN)).folder
    killed = make_recipe("killed", stage=stage, method=method, **RUN)
    steps = count(1)

    def kill(event):
        if event["kind"] == "step" and next(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(killed, kill)
    assert resume(killed.output).complete

    assert without_clock(measured(whole.path)) == without_clock(measured(killed.output))
    rows = read_jsonl(whole.samples)
    assert rows == read_jsonl(killed.output / "samples" / "rollouts.jsonl")
    one, other = trained_weights(whole.path), trained_weights(killed.output)
    assert all(torch.equal(one[name], other[name]) for name in one)

    lines = [line for line in measured(whole.path) if line["kind"] == "step"]
    assert any(0 < line["own_answers"] < 1 for line in lines)
    assert all("answer_tokens" in line and line["gradient_norm"] > 0 for line in lines if line["own_answers"])
    assert {row["step"] for row in rows} <= {1, 3}
    assert all(row["answer"] is not None and "reward" not in row for row in rows)
    report = (whole.path / "report.html").read_text("utf-8")
    assert "What the model wrote while it learnt" in report
    assert "reward" not in report.partition("What the model wrote")[2].partition("</section>")[0]


def test_with_no_answers_of_its_own_it_is_distillation(make_recipe, saved_model, measured, trained_weights):
    """Bit by bit, and what held-out data is judged by is the same number."""
    kept = {"teacher": str(saved_model("gpt2")), "beta": 0.5}
    stages = {"gkd": gkd(saved_model, **kept, student_share=0), "distill": {"type": "distill", **kept}}
    folders = {name: train(make_recipe(name, stage=stage, **RUN)).folder for name, stage in stages.items()}
    figures = {
        name: [(line["kind"], line["loss"], line.get("gradient_norm")) for line in measured(folder.path)]
        for name, folder in folders.items()
    }
    one, other = (trained_weights(folder.path) for folder in folders.values())

    assert figures["gkd"] == figures["distill"]
    assert {kind for kind, *_ in figures["gkd"]} == {"step", "evaluation"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not folders["gkd"].samples.exists()
    assert folders["gkd"].read("evaluation.json")["loss"] == folders["distill"].read("evaluation.json")["loss"]


def test_layouts_learn_the_same(make_recipe, saved_model, measured):
    stage = gkd(saved_model, num_generations=2)
    short = {**RUN, "schedule": {**RUN["schedule"], "steps": 2}}
    losses = []
    for layout in ("prefix", "packed", "padded"):
        recipe = make_recipe(
            layout, stage=stage, method={"type": "lora", "rank": 4}, engine={"layout": layout}, **short
        )
        losses.append([line["loss"] for line in measured(train(recipe).folder.path)])

    assert all(one == pytest.approx(other, rel=1e-4) for one, other in pairwise(losses))


def test_it_comes_closer_to_the_teacher_where_it_writes_itself(make_recipe, saved_model, measured):
    schedule = {"steps": 12, "batch_size": 6, "learning_rate": 1e-2}
    stage = gkd(saved_model, student_share=1, beta=1)
    recipe = make_recipe(stage=stage, method="full", **{**RUN, "schedule": schedule})
    train(recipe)
    apart = [line["divergence_own"] for line in measured(recipe.output) if line["kind"] == "step"]

    assert np.mean(apart[-3:]) < 0.8 * np.mean(apart[:3])


def test_early_stopping_watches_the_divergence(make_recipe, saved_model):
    evaluation = {"examples": 0, "every": 1, "patience": 2, "minimum_gain": 100}
    outcome = train(make_recipe(stage=gkd(saved_model), **{**RUN, "evaluation": evaluation}))

    assert outcome.reason == "early stopping"


@pytest.mark.parametrize(
    ("settings", "blocks", "said"),
    [
        ({"top_k": 8}, {}, "cannot know what the student will write"),
        ({}, {"method": "prompt_tuning"}, "puts tokens before the text"),
        ({"sampling": {"max_new_tokens": 160}}, {}, "leave no room for a prompt"),
        ({"student_share": 1.5}, {}, "student_share"),
        ({"teacher": "./nowhere"}, {}, r"stage.teacher: no such folder"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(settings, blocks, said, make_recipe, saved_model):
    with pytest.raises(RecipeError, match=said):
        settle(make_recipe(stage=gkd(saved_model, **settings), **{**RUN, **blocks}))


def test_several_processes_are_refused():
    (problem,) = as_stage().check_processes(2)

    assert (problem.path, problem.hint) == ("stage", "start it without a launcher")


def test_the_plan_counts_the_teacher_and_the_longest_answers(make_recipe, saved_model):
    small, large = (
        settle(make_recipe(stage=gkd(saved_model, student_share=1, num_generations=n), **RUN)).plan.memory
        for n in (1, 12)
    )

    assert small.parts["teacher"] > 0
    assert small.total < large.total


def test_the_shipped_recipe_can_be_planned(tmp_path, monkeypatch, saved_model):
    """On the demo's data, beside any model."""
    recipe = Path(__file__).parents[2] / "recipes" / "distillation" / "gkd.yaml"
    monkeypatch.chdir(tmp_path)
    write_demo_data(Path("runs/demo/data"), corpus_lines=2, train_couplets=8, test_couplets=4)
    for name in ("base", "couplets"):
        shutil.copytree(saved_model("qwen3"), Path("runs/demo") / name)

    assert settle(read_recipe(recipe)).prepared.train.counts["conversations"] == 8
