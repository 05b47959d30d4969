"""Distillation: TRL's generalised Jensen–Shannon loss, whole or of a few tokens, and runs with a teacher."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from preference_pairs import asking, distance
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_jsonl
from tunesmith.data.conversation import Conversation, Message
from tunesmith.engine.divergence import Teacher, divergence, with_tail
from tunesmith.engine.example import Example
from tunesmith.engine.model import PackModel
from tunesmith.engine.objective import pass_loss
from tunesmith.engine.pack import build_packs
from tunesmith.recipe.read import read_recipe
from tunesmith.run.demo_corpus import write_demo_data
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train
from tunesmith.stages import STAGES
from tunesmith.templates.chat import ChatTemplate

TOLERANCE = 1e-5
WORDS = ["mist", "hill", "pine tree", "moon on a boat", "rain"]


@pytest.fixture(scope="module")
def models(saved_model):
    """A student and a teacher of another architecture, over the same tokens."""
    return tuple(
        AutoModelForCausalLM.from_pretrained(saved_model(name), dtype=torch.float32).eval()
        for name in ("llama", "gpt2")
    )


def conversations() -> list[Conversation]:
    return [
        Conversation((Message("user", f"Write the words again: {word}"), Message("assistant", f"{word}.")))
        for word in WORDS
    ]


def made(stage, tokenizer) -> list[Example]:
    return [e for each in stage.examples(conversations(), ChatTemplate(tokenizer), 512) for e in each]


def gradients_of(loss, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both_logits(models, examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of student and teacher at each trained token, one sequence at a time, and those tokens."""
    out = []
    for example in examples:
        (sequence,) = example.sequences
        tokens = torch.tensor(sequence.tokens.tolist())[None]
        at = torch.tensor(np.flatnonzero(sequence.weight))
        with torch.no_grad():
            theirs = models[1](tokens).logits[0, at - 1]
        out.append((models[0](tokens).logits[0, at - 1], theirs, tokens[0, at]))
    own, theirs, targets = (torch.cat(each) for each in zip(*out, strict=True))
    return own, theirs, targets


def step(stage, student, examples, layout, teacher=None):
    packed = PackModel(student, student).eval()
    packed.teacher = teacher
    student.zero_grad()
    total = 0.0
    for pack in build_packs(examples, layout, 120):
        loss = pass_loss(packed, stage, pack.to("cpu")).total
        loss.backward()
        total += float(loss.detach())
    size = stage.size(examples)
    return total / size, {n: p.grad.clone() / size for n, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", ["prefix", "padded"])
@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.3, 2.0), (1.0, 1.0)])
def test_the_loss_is_that_of_trl(beta, temperature, layout, models, tokenizer, monkeypatch):
    """Value and gradients, in small chunks of the predictions, mixed with imitation."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    monkeypatch.setattr("tunesmith.engine.divergence.chunk_rows", lambda *_: 8)
    monkeypatch.setattr("tunesmith.engine.divergence.ROW_STEP", 8)
    settings = {"beta": beta, "temperature": temperature, "sft_weight": 0.25}
    stage = STAGES.parse({"type": "distill", "teacher": "x", **settings})
    examples = made(stage, tokenizer)
    own, theirs, targets = both_logits(models, examples)
    loss = GKDTrainer.generalized_jsd_loss(
        own[None], theirs[None], labels=targets[None], beta=beta, temperature=temperature
    ) + 0.25 * torch.nn.functional.cross_entropy(own, targets)
    expected, gradients = float(loss.detach()), gradients_of(loss, models[0])
    teacher = Teacher(PackModel(models[1], models[1]), beta, temperature)

    found, ours = step(stage, models[0], examples, layout, teacher)

    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert distance(ours, gradients) < TOLERANCE


@pytest.mark.parametrize("layout", ["prefix", "packed"])
def test_a_few_tokens_and_the_rest_as_one_are_a_distribution(layout, models, tokenizer):
    """What the teacher said is kept as JSON, and found again in every layout."""
    stage = STAGES.parse({"type": "distill", "teacher": "x", "top_k": 6, "beta": 0.5})
    examples = made(stage, tokenizer)
    own, theirs, _ = both_logits(models, examples)
    best = theirs.log_softmax(-1).topk(6)
    bins = with_tail(own.log_softmax(-1).gather(1, best.indices)), with_tail(best.values)
    loss = divergence(*bins, 0.5).mean()
    expected, gradients = float(loss.detach()), gradients_of(loss, models[0])
    assert torch.allclose(bins[1].exp().sum(-1), torch.ones(len(own)))
    kept = json.loads(json.dumps(stage.prepare(examples, range(len(examples)), asking(models[1]))))
    asked = [Example(e.sequences, e.origin, tuple(values)) for e, values in zip(examples, kept, strict=True)]

    found, ours = step(stage, models[0], asked, layout)

    assert found == pytest.approx(expected, abs=2e-5)  # five digits are kept of a log-probability
    assert distance(ours, gradients) < 1e-4


def distill_run(make_recipe, saved_model, **blocks):
    stage = {"type": "distill", "teacher": str(saved_model("gpt2")), **blocks.pop("stage", {})}
    return make_recipe(stage=stage, method="full", schedule={"steps": 4, "batch_size": 4}, **blocks)


@pytest.mark.parametrize("stage", [{"beta": 0.5}, {"top_k": 8}], ids=["beside", "kept"])
def test_a_run_with_a_teacher_goes_on_bit_by_bit(stage, make_recipe, saved_model, measured):
    class Killed(BaseException):
        pass

    def die(event) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            raise Killed

    whole, killed = (distill_run(make_recipe, saved_model, name=name, stage=stage) for name in ("whole", "killed"))
    train(whole)
    with pytest.raises(Killed):
        train(killed, die)
    assert resume(killed.output).complete

    assert measured(whole.output) == measured(killed.output)
    lines = read_jsonl(whole.output / "metrics.jsonl")
    assert all(line["divergence"] == pytest.approx(line["loss"]) for line in lines)
    assert (whole.output / "reference.json").exists() == ("top_k" in stage)
    judged = json.loads((whole.output / "evaluation.json").read_text("utf-8"))
    assert set(judged["loss"]) == {"base", "tuned"}


def test_the_shipped_recipe_can_be_planned(tmp_path, monkeypatch, saved_model):
    """On the demo's data, beside any model."""
    recipe = Path(__file__).parents[2] / "recipes" / "distillation" / "distill.yaml"
    monkeypatch.chdir(tmp_path)
    write_demo_data(Path("runs/demo/data"), corpus_lines=2, train_couplets=8, test_couplets=4)
    for name in ("base", "couplets"):
        shutil.copytree(saved_model("qwen3"), Path("runs/demo") / name)

    assert settle(read_recipe(recipe)).prepared.train.counts["conversations"] == 8


def test_a_teacher_is_told_of_and_must_read_the_same_tokens(make_recipe, saved_model, tmp_path):
    from tunesmith.models.new_tokenizer import make_tokenizer
    from tunesmith.models.schema import NewTokenizer

    plan = settle(distill_run(make_recipe, saved_model)).plan
    weights = AutoModelForCausalLM.from_pretrained(saved_model("gpt2")).num_parameters()
    assert any("stays in memory beside the model" in text for text in plan.notices)
    assert plan.memory.parts["teacher"] == 4 * weights

    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(saved_model("gpt2"))
    model.save_pretrained(other)
    make_tokenizer(NewTokenizer(vocabulary_size=300), ["other words"]).save_pretrained(other)
    with pytest.raises(RecipeError, match=r"stage.teacher: .*has another tokenizer"):
        settle(distill_run(make_recipe, saved_model, stage={"teacher": str(other)}))
    with pytest.raises(RecipeError, match=r"stage.teacher: no such folder"):
        distill_run(make_recipe, saved_model, stage={"teacher": "./nowhere"})
