"""Models that give numbers: losses of TRL and transformers, what is saved, what they are judged and used by."""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from preference_pairs import conversations, distance, make_pairs, step, write_pairs
from torch.nn.utils.rnn import pad_sequence

from tunesmith.core.errors import DataError, RecipeError, UserError
from tunesmith.core.files import read_jsonl
from tunesmith.data.conversation import Conversation, Message, Origin, Record
from tunesmith.data.formats import FORMATS
from tunesmith.models.heads import Head
from tunesmith.models.load import find_model, model_from
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.export import export
from tunesmith.run.head_evaluation import RewardJudge
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train
from tunesmith.scoring import SCORERS, prepare_scores
from tunesmith.stages import STAGES
from tunesmith.templates.chat import ChatTemplate

TOLERANCE = 1e-5
LAYOUTS = ("prefix", "packed", "padded", "single")


@pytest.fixture(scope="module")
def template(tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


def with_head(saved_model, head: Head, name: str = "llama"):
    return model_from(find_model(str(saved_model(name))), torch.float32, head=head, seed=1).eval()


def rows_of(sequences, filling: int) -> dict[str, torch.Tensor]:
    """Texts as transformers takes them: without the closing token, filled up."""
    return padded([s.tokens[:-1].tolist() for s in sequences], filling)


def padded(texts, filling: int) -> dict[str, torch.Tensor]:
    rows = [torch.tensor(list(text)) for text in texts]
    ones = [torch.ones(len(row), dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=filling),
        "attention_mask": pad_sequence(ones, batch_first=True),
    }


def gradients_of(loss, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- losses


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("centering", [0.0, 0.1])
def test_rewards_are_learnt_as_trl_learns_them(centering, layout, saved_model, template):
    """Loss and gradients are those of RewardTrainer, with margins, in every layout."""
    from trl import RewardTrainer

    pairs = [
        Conversation(c.messages, rejected=c.rejected, shared=1, margin=0.5 * number)
        for number, c in enumerate(conversations(make_pairs(5)))
    ]
    stage = STAGES.parse({"type": "reward", "center_rewards_coefficient": centering})
    model = with_head(saved_model, stage.head)
    model.config.pad_token_id = filling = template.tokenizer.pad_token_id
    examples = [e for each in stage.examples(pairs, template, 512) for e in each]
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = RewardTrainer.__new__(RewardTrainer)
    trainer.model, trainer.accelerator = model, Accelerator(cpu=True)
    trainer.args = SimpleNamespace(center_rewards_coefficient=centering or None)
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = defaultdict(lambda: defaultdict(list)), 0, 1
    rows = rows_of([e.sequences[side] for side in (0, 1) for e in examples], filling)
    loss = trainer.compute_loss(model, {**rows, "margin": torch.tensor([e.values[0] for e in examples])})
    expected, gradients = float(loss.detach()), gradients_of(loss, model)

    found, own, parts = step(stage, model, examples, layout)

    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert distance(own, gradients) < TOLERANCE
    assert parts["rewards/accuracy"] == pytest.approx(trainer._metrics["eval"]["accuracy"][0])
    assert parts["rewards/margin"] == pytest.approx(trainer._metrics["eval"]["margin"][0], abs=TOLERANCE)


def stepwise(count: int) -> list[Conversation]:
    read = FORMATS.get("stepwise")().read
    rows = [
        {
            "prompt": f"Add one to {number}, twice.",
            "completions": [f"{number} and one is {number + 1}.", *["So it is done."] * (number % 2), "More."],
            "labels": [True, *[bool(number % 3)] * (number % 2), False],
        }
        for number in range(count)
    ]
    return [read(Record(row, Origin("memory", at))) for at, row in enumerate(rows)]


@pytest.mark.parametrize("layout", ["prefix", "padded"])
def test_steps_are_judged_as_token_classification(layout, saved_model, template):
    """Loss and gradients are those of transformers' model with a label at the last token of each step (TRL's PRM)."""
    stage = STAGES.parse({"type": "process_reward"})
    model = with_head(saved_model, stage.head)
    examples = [e for each in stage.examples(stepwise(5), template, 512) for e in each]
    rows = rows_of([e.sequences[0] for e in examples], 0)
    labels = torch.full(rows["input_ids"].shape, -100)
    for at, example in enumerate(examples):
        ends = np.flatnonzero(example.sequences[0].weight) - 1
        labels[at, ends] = torch.tensor(example.values)
        # each step is there, and ends where its separator does
        assert template.tokenizer.decode(example.sequences[0].tokens[: ends[0] + 1]).endswith(f"is {at + 1}.\n")
    loss = model(**rows, labels=labels).loss
    expected, gradients = float(loss.detach()), gradients_of(loss, model)

    found, own, _ = step(stage, model, examples, layout)

    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert distance(own, gradients) < TOLERANCE


@pytest.mark.parametrize(
    ("stage", "ratings"),
    [
        ({"type": "classification", "labels": ["5", "happy", "sad"]}, ["sad", 5.0, "happy", "sad"]),
        ({"type": "regression"}, [0.5, -1.0, 2.0, 0.0]),
    ],
    ids=["classification", "regression"],
)
def test_labels_are_learnt_as_transformers_learns_them(stage, ratings, saved_model, template):
    """Texts and dialogues end where transformers reads them, though they end with what rows are filled up with."""
    stage = STAGES.parse(stage)
    model = with_head(saved_model, stage.head)
    model.config.pad_token_id = filling = template.tokenizer.pad_token_id
    given = [
        Conversation(text=f"A text of {'many ' * at}words.<|endoftext|>", rating=rating)
        for at, rating in enumerate(ratings)
    ]
    given[1] = Conversation((Message("user", "How is it?"), Message("assistant", "Well.")), rating=ratings[1])
    examples = [e for each in stage.examples(given, template, 512) for e in each]
    truth = torch.tensor([e.values[0] for e in examples])
    whole = [
        template.tokenizer(c.text)["input_ids"] if c.text else e.sequences[0].tokens[:-1].tolist()
        for c, e in zip(given, examples, strict=True)
    ]
    assert whole[0][-1] == filling
    loss = model(**padded(whole, filling), labels=truth).loss
    expected, gradients = float(loss.detach()), gradients_of(loss, model)

    found, own, _ = step(stage, model, examples, "prefix")

    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert distance(own, gradients) < TOLERANCE


# --- runs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, str]:
    """Files of 16 training pairs and 4 for validation."""
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def reward_run(make_recipe, pairs, **blocks):
    usual = {"data": {**pairs}, "stage": {"type": "reward"}, "schedule": {"steps": 4, "batch_size": 4}}
    return make_recipe(**{**usual, **blocks})


def transformers_rewards(folder: Path, rows) -> list[float]:
    """What transformers says, and peft where there is an adapter, of rows filled up."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    if (folder / "adapter_config.json").exists():
        base = json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = PeftModel.from_pretrained(model, folder)
        model.config.pad_token_id = json.loads((folder / "config.json").read_text("utf-8"))["pad_token_id"]
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(**rows).logits.squeeze(1).tolist()


@pytest.mark.parametrize("method", ["full", {"type": "lora", "rank": 4}], ids=["full", "lora"])
def test_what_is_saved_gives_the_same_rewards_in_transformers(
    method, make_recipe, pairs, tokenizer, template, tmp_path
):
    """And to whoever asks it as a score; a language model's commands say what it is."""
    recipe = reward_run(make_recipe, pairs, method=method)
    assert train(recipe).complete
    weights = recipe.output / "weights"
    held_out = conversations(make_pairs(20)[16:])
    stage = recipe.stage
    examples = [e for each in stage.examples(held_out, template, 512) for e in each]
    rows = rows_of([s for e in examples for s in e.sequences], tokenizer.pad_token_id)
    expected = transformers_rewards(weights, rows)
    score = SCORERS.parse({"type": "reward_model", "model": str(recipe.output)})
    prepare_scores([score], list, lambda path: RewardJudge(path, "cpu"))
    asked = [(c, m[-1].content) for c in held_out for m in (c.messages, c.rejected)]

    found = [each.value for each in score.score_all(asked)]

    assert np.log(found) - np.log1p(np.negative(found)) == pytest.approx(expected, abs=TOLERANCE)
    evaluation = json.loads((recipe.output / "evaluation.json").read_text("utf-8"))
    assert evaluation["scores"]["pair_accuracy"]["tuned"] == np.mean(np.array(expected[::2]) > np.array(expected[1::2]))
    validated = [m["loss"] for m in read_jsonl(recipe.output / "metrics.jsonl") if m["kind"] == "evaluation"]
    assert evaluation["loss"]["tuned"] == pytest.approx(min(validated), abs=TOLERANCE)
    assert "pair accuracy" in (recipe.output / "report.html").read_text("utf-8")
    with pytest.raises(UserError, match="reward model or classifier"):
        load_contestant(str(recipe.output))
    whole = export(str(recipe.output), tmp_path / "whole", dtype="float32")
    assert transformers_rewards(whole, rows) == pytest.approx(expected, abs=TOLERANCE)
    papers = json.loads((whole / "tunesmith.json").read_text("utf-8"))
    assert papers["from"] == str(recipe.output)
    assert papers["parity"]["largest_difference"] <= TOLERANCE
    card = (whole / "README.md").read_text("utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification.from_pretrained('whole')" in card
    assert "| pair_accuracy |" in card


def test_a_head_learns_on_a_quantized_base(make_recipe, pairs, saved_model):
    """QLoRA of a reward model: its loss falls, and it judges from its folder as it did at the end of training."""
    pytest.importorskip("bitsandbytes")
    base = {"path": str(saved_model("qwen3")), "quantization": "nf4"}
    schedule = {"steps": 12, "batch_size": 8, "learning_rate": 1e-2}
    recipe = reward_run(make_recipe, pairs, model=base, method={"type": "lora", "rank": 4}, schedule=schedule)
    train(recipe)

    losses = [m["loss"] for m in read_jsonl(recipe.output / "metrics.jsonl") if m["kind"] == "step"]
    validated = [m for m in read_jsonl(recipe.output / "metrics.jsonl") if m["kind"] == "evaluation"]
    judged = json.loads((recipe.output / "evaluation.json").read_text("utf-8"))
    assert min(losses[-3:]) < losses[0]
    assert judged["loss"]["tuned"] == pytest.approx(min(m["loss"] for m in validated), abs=1e-3)
    with pytest.raises(UserError, match="a head trained on quantized weights belongs to them"):
        export(str(recipe.output), recipe.output.parent / "whole")


@pytest.mark.parametrize("method", ["full", {"type": "lora", "rank": 4, "dropout": 0.1}], ids=["full", "lora"])
def test_a_run_killed_goes_on_bit_by_bit(method, make_recipe, pairs, measured):
    class Killed(BaseException):
        pass

    def die(event) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            raise Killed

    whole, killed = (reward_run(make_recipe, pairs, name=name, method=method) for name in ("whole", "killed"))
    train(whole)
    with pytest.raises(Killed):
        train(killed, die)
    assert resume(killed.output).complete

    assert measured(whole.output) == measured(killed.output)
    weights = [next((run.output / "weights").glob("*.safetensors")).read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]


def test_a_reward_model_goes_on_and_a_policy_learns_from_it(make_recipe, pairs):
    """The head that was trained is the one that trains further, as an adapter or whole; GRPO asks it."""
    first = reward_run(make_recipe, pairs, name="first")
    train(first)
    again = reward_run(make_recipe, pairs, name="again", model=str(first.output), method="full")
    train(again)
    policy = make_recipe(
        name="policy",
        stage={
            "type": "grpo",
            "rewards": [{"score": {"type": "reward_model", "model": str(again.output)}}],
            "num_generations": 2,
            "sampling": {"max_new_tokens": 4},
        },
        schedule={"steps": 1, "batch_size": 2},
        evaluation={"examples": 2},
    )
    assert train(policy).complete

    losses = [
        m["loss"] for run in (first, again) for m in read_jsonl(run.output / "metrics.jsonl") if m["kind"] == "step"
    ]
    assert losses[4] < losses[0]
    step = read_jsonl(policy.output / "metrics.jsonl")[0]
    assert 0 < step["reward_reward_model"] < 1


@pytest.mark.parametrize(
    ("stage", "rows", "scores"),
    [
        (
            {"type": "classification", "labels": ["short", "long"]},
            [{"text": "word " * (1 + at % 7), "label": "long" if at % 7 > 3 else "short"} for at in range(20)],
            {"accuracy", "macro_f1"},
        ),
        (
            {"type": "regression"},
            [{"text": "word " * (1 + at % 7), "label": at % 7} for at in range(20)],
            {"variance_explained"},
        ),
        (
            {"type": "process_reward"},
            [{"prompt": f"{at}?", "completions": ["Yes.", "No."], "labels": [1, at % 2]} for at in range(20)],
            {"accuracy", "first_error"},
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_other_heads_train_and_are_judged(stage, rows, scores, make_recipe, tmp_path):
    """The format is found by the columns; what is saved names its classes."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    for name, part in (("train", rows[:14]), ("validation", rows[14:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part), "utf-8")
    data = {name: str(tmp_path / f"{name}.json") for name in ("train", "validation")}
    recipe = make_recipe(data=data, stage=stage, method="full", schedule={"steps": 2, "batch_size": 4})
    assert settle(recipe).plan.memory is not None
    assert train(recipe).complete

    evaluation = json.loads((recipe.output / "evaluation.json").read_text("utf-8"))
    assert set(evaluation["scores"]) == scores
    kind = AutoModelForTokenClassification if stage["type"] == "process_reward" else AutoModelForSequenceClassification
    model = kind.from_pretrained(recipe.output / "weights")
    assert model.num_labels == recipe.stage.head.outputs
    assert tuple(model.config.id2label.values())[: len(recipe.stage.head.labels)] == recipe.stage.head.labels


def test_what_cannot_be_is_refused_beforehand(make_recipe, pairs, template):
    with pytest.raises(RecipeError, match="has no place beside its adapter"):
        reward_run(make_recipe, pairs, method="prompt_tuning")
    with pytest.raises(RecipeError, match="scores judge answers"):
        reward_run(make_recipe, pairs, evaluation={"scores": ["bleu"]})
    with pytest.raises(DataError, match="reward learns from pairs, but this row has one answer"):
        settle(make_recipe(stage={"type": "reward"}))
    classes = STAGES.parse({"type": "classification", "labels": ["sad", "happy"]})
    with pytest.raises(DataError, match=r"'hapy' is none of stage.labels .*did you mean 'happy'"):
        classes.examples([Conversation(text="x", rating="hapy")], template, 9)
