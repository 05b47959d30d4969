"""What a run becomes: one model that every tool loads, proved to answer as the run does, or nothing at all."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunesmith.core.errors import UserError
from tunesmith.models.load import find_model, model_from
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.export import export
from tunesmith.run.train import train

LORA = {"type": "lora", "rank": 4}
FAST = {"steps": 20, "batch_size": 8, "learning_rate": 2e-2}


@pytest.fixture(scope="module")
def run(make_recipe_in, tmp_path_factory) -> Path:
    """The folder of a LoRA run that has learnt enough to answer unlike its base."""
    recipe = make_recipe_in(tmp_path_factory.mktemp("run"), method=LORA, schedule=FAST, evaluation={"every": 20})
    train(recipe)
    return recipe.output


def greedy(model, tokenizer, question: str) -> list[int]:
    """What plain transformers answers."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        written = model.generate(**asked, max_new_tokens=12, do_sample=False)
    return written[0, asked["input_ids"].shape[1] :].tolist()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_plain_transformers_load_the_export_and_answer_as_the_run_does(run, saved_model, tmp_path):
    written = export(str(run), tmp_path / "model")
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(written), AutoTokenizer.from_pretrained(written)
    tuned = load_contestant(str(run), "cpu")
    base = AutoModelForCausalLM.from_pretrained(saved_model("qwen3"))
    question = "Write the words again.\nmoon 4"

    assert greedy(tuned.model, tokenizer, question) == greedy(merged, tokenizer, question)
    assert greedy(base, tokenizer, question) != greedy(merged, tokenizer, question)
    assert not [name for name in files(written) if name.startswith("adapter") or name.endswith(".bin")]
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= files(written)
    assert {".model.partial"}.isdisjoint(files(tmp_path))


def test_the_export_carries_template_and_stop_tokens(run, tokenizer, tmp_path):
    written = export(str(run), tmp_path / "model")
    saved = AutoTokenizer.from_pretrained(written)

    assert tokenizer.chat_template == saved.chat_template
    assert [tokenizer.convert_tokens_to_ids("<|im_end|>")] == GenerationConfig.from_pretrained(written).eos_token_id


def test_the_export_can_be_trained_further(run, make_recipe, tmp_path):
    written = export(str(run), tmp_path / "model")

    assert train(make_recipe(model=str(written), schedule={"steps": 2})).complete


def test_a_merge_that_answers_differently_is_refused_and_leaves_nothing(run, tmp_path, monkeypatch):
    from peft.tuners.tuners_utils import BaseTuner

    plain = BaseTuner.merge_and_unload

    def tamper(self, *arguments, **options):
        merged = plain(self, *arguments, **options)
        with torch.no_grad():
            merged.get_output_embeddings().weight.mul_(-1)
        return merged

    monkeypatch.setattr(BaseTuner, "merge_and_unload", tamper)
    with pytest.raises(UserError, match=r"the merged model differs from the run: after .* it writes .* instead of"):
        export(str(run), tmp_path / "model")
    assert files(tmp_path) == set()


def test_a_disk_that_is_full_leaves_nothing(run, tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    def fail(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        export(str(run), tmp_path / "model")
    assert files(tmp_path) == set()


def test_a_folder_that_holds_something_is_not_written_to(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", "utf-8")

    with pytest.raises(UserError, match=r"is not empty; name a new folder"):
        export(str(run), tmp_path)
    assert {"notes.txt"} == files(tmp_path)


@pytest.mark.parametrize(("asked", "found"), [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_the_weights_have_the_type_that_was_asked_for(asked, found, run, tmp_path):
    """A shorter type is a rounding of what was proved, not another merge."""
    written = export(str(run), tmp_path / "model", dtype=asked)

    assert json.loads((written / "config.json").read_text("utf-8"))["dtype"] == found


def test_auto_is_the_type_of_the_base(run, tmp_path):
    """A model that was exported in bfloat16 stays so when it is exported again."""
    first = export(str(run), tmp_path / "first", dtype="bfloat16")
    second = export(str(first), tmp_path / "second")

    assert json.loads((second / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


def test_a_full_run_is_exported_too(make_recipe, tmp_path):
    recipe = make_recipe(method="full", schedule=FAST, evaluation={"every": 20})
    train(recipe)
    written = export(str(recipe.output), tmp_path / "model")
    expected = model_from(find_model(str(recipe.output)), torch.float32).state_dict()
    found = AutoModelForCausalLM.from_pretrained(written).state_dict()

    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_without_weights_is_refused_with_the_way_on(make_recipe, tmp_path):
    recipe = make_recipe()

    def die(event) -> None:
        if event["kind"] == "begin":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, die)
    with pytest.raises(UserError, match=r"is a run without weights yet; finish it with: tunesmith resume"):
        export(str(recipe.output), tmp_path / "model")


@pytest.fixture(scope="module")
def second_run(run, make_recipe_in) -> Path:
    """A LoRA run on top of the first."""
    blocks = {"model": str(run), "method": LORA, "schedule": {**FAST, "steps": 4}, "evaluation": {"every": 4}}
    recipe = make_recipe_in(run.parent, "second", **blocks)
    train(recipe)
    return recipe.output


def loss_of(path: Path, data) -> float:
    """The validation loss that a run loaded from disk has."""
    from tunesmith.data.read import read_sources
    from tunesmith.data.source import Source
    from tunesmith.engine.model import PackModel, pack_arguments
    from tunesmith.engine.pack import build_packs
    from tunesmith.stages import STAGES

    contestant, stage = load_contestant(str(path), "cpu"), STAGES.get("sft")()
    rows = read_sources([Source(path=data[1])], bad_rows="refuse").conversations
    examples = [e for each in stage.examples(rows, contestant.template, 160) for e in each]
    model = contestant.model
    base = model.get_base_model() if find_model(str(path)).adapter else model
    (pack,) = build_packs(examples, "padded", 10**9)
    tensors = pack.to("cpu")
    with torch.no_grad():
        log_probabilities = PackModel(model, base).eval()(**pack_arguments(tensors))
    return float(stage.loss(log_probabilities, tensors).total) / stage.size(examples)


def test_a_run_loads_as_it_was_when_it_ended(run, measured, data):
    ended = [event["loss"] for event in measured(run) if event["kind"] == "evaluation"][-1]

    assert pytest.approx(ended, abs=1e-5) == loss_of(run, data)


def test_an_adapter_trained_on_a_run_with_an_adapter_keeps_both(run, second_run, measured, data):
    base = json.loads((second_run / "evaluation.json").read_text("utf-8"))["loss"]["base"]
    ended = [event["loss"] for event in measured(second_run) if event["kind"] == "evaluation"][-1]

    assert pytest.approx(loss_of(run, data), abs=1e-5) == base
    assert pytest.approx(ended, abs=1e-5) == loss_of(second_run, data)
    assert abs(ended - base) > 0.01


def test_an_adapter_on_an_adapter_becomes_one_plain_model(second_run, tmp_path):
    written = export(str(second_run), tmp_path / "model")
    run = model_from(find_model(str(second_run)), torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)
    tokens = torch.arange(5, 60)[None]

    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, run(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_base_that_was_trained_again_is_not_taken_for_the_old_one(make_recipe, tmp_path):
    """The adapter would still fit in shape, and answer nonsense."""
    blocks = {"method": "full", "schedule": {"steps": 2}, "evaluation": {"every": 2}}
    first = make_recipe("first", **blocks)
    train(first)
    second = make_recipe("second", model=str(first.output), schedule={"steps": 2})
    train(second)
    train(make_recipe("first", seed=9, **blocks), overwrite=True)

    with pytest.raises(UserError, match=r"has changed since the adapter"):
        export(str(second.output), tmp_path / "model")
