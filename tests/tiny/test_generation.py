"""How tokens are chosen, and how they become text: compared with transformers."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tunesmith.core.errors import UserError
from tunesmith.core.files import read_jsonl
from tunesmith.data.conversation import Conversation, Message
from tunesmith.generation.presets import PRESET_NOTES, PRESETS
from tunesmith.generation.reply import Reply, Terms
from tunesmith.generation.requests import Request
from tunesmith.generation.sample import answer_all, stream, stream_answer
from tunesmith.generation.sampler import Sampler, draw, keep, repeat_less
from tunesmith.generation.settings import Generation
from tunesmith.generation.text import TextStream, cut_at
from tunesmith.run.chat import Talk

PROMPTS = [[(7 * row + 3 * place) % 90 + 2 for place in range(3 + 11 * row % 29)] for row in range(6)]


@pytest.fixture(scope="module")
def model(saved_model):
    return AutoModelForCausalLM.from_pretrained(saved_model("qwen3")).eval()


def a_reply(settings: Generation, prompt: tuple[int, ...] = (1, 2, 3), seed: int = 0) -> Reply:
    terms = Terms(write=lambda *_: None, fail=lambda error: None, context=999, seed=seed)
    return Reply(Request(prompt, settings), terms)


# --- what may be sampled


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        ({"typical_p": 0.5}, [TypicalLogitsWarper(0.5)]),
        ({"top_k": 20, "top_p": 0.8}, [TopKLogitsWarper(20), TopPLogitsWarper(0.8)]),
        (
            {"top_k": 30, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8},
            [TopKLogitsWarper(30), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05), TypicalLogitsWarper(0.8)],
        ),
    ],
)
def test_the_tokens_kept_are_those_that_transformers_keeps(settings, warpers):
    torch.manual_seed(0)
    logits = torch.randn(40, 97) * 2
    limits = {"top_k": 97, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, **settings}
    ordered, order = logits.sort(descending=True)
    column = {name: torch.full((40, 1), value) for name, value in limits.items()}
    total = logits.logsumexp(-1, keepdim=True)
    kept = torch.zeros(40, 97, dtype=torch.bool).scatter(1, order, keep(ordered, total, **column))
    expected = LogitsProcessorList(warpers)(torch.zeros(40, 1, dtype=torch.long), logits.clone())

    assert torch.equal(expected > -torch.inf, kept)


@pytest.mark.parametrize("settings", [{"top_p": 0.8}, {"min_p": 0.2}, {"top_k": 1500}, {"top_k": 9, "top_p": 0.9}])
def test_the_head_of_a_large_vocabulary_is_enough_or_is_not_used(monkeypatch, settings):
    """What is drawn is the same as where everything is ordered; here once it is enough, and once it is not."""
    torch.manual_seed(0)
    for spread in (6.0, 0.1):
        logits, drawn = torch.randn(1, 5000) * spread, []
        for head in (1024, 5000):
            monkeypatch.setattr("tunesmith.generation.sampler._HEAD", head)
            replies = [a_reply(Generation(temperature=1, **settings), seed=seed) for seed in range(20)]
            chosen = Sampler(replies, 5000, torch.device("cpu")).choose(logits.repeat(20, 1))
            drawn.append([choice.token for choice in chosen])
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0])) > 1


def test_repeated_tokens_get_less_likely_as_in_transformers():
    torch.manual_seed(0)
    logits, tokens = torch.randn(3, 50), torch.randint(50, (3, 9))
    seen = torch.zeros(3, 50, dtype=torch.bool).scatter(1, tokens, True)

    assert torch.equal(
        RepetitionPenaltyLogitsProcessor(1.3)(tokens, logits.clone()), repeat_less(logits, seen, torch.tensor(1.3))
    )


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probabilities = torch.tensor([[0.5, 0.0, 0.2, 0.3]])
    random = Random(0)
    drawn = [int(draw(probabilities, torch.tensor([[random.random()]]).double())) for _ in range(4000)]
    counts = [drawn.count(token) / 4000 for token in range(4)]

    assert counts[1] == 0
    assert np.allclose(counts, probabilities[0], atol=0.03)


def test_presence_and_frequency_are_taken_off_as_openai_says():
    settings = Generation(presence_penalty=0.5, frequency_penalty=0.25)
    reply = a_reply(settings, prompt=(4, 4, 4))
    reply.tokens = [7, 7, 8]
    logits = torch.zeros(1, 10)
    logits[0, 7], logits[0, 8], logits[0, 9] = 1.0, 0.8, 0.2  # 7: 1 - 0.5 - 2 * 0.25 = 0; 8: 0.8 - 0.75 = 0.05
    sampler = Sampler([reply], 10, torch.device("cpu"))

    assert sampler.choose(logits.clone())[0].token == 9
    reply.tokens = []
    assert Sampler([reply], 10, torch.device("cpu")).choose(logits.clone())[0].token == 7


def test_penalties_of_nothing_change_nothing():
    neutral = Generation(presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, top_k=0, min_p=0.0)

    assert neutral == Generation()


def test_log_probabilities_are_the_models_own(model):
    settings = Generation(max_new_tokens=5, temperature=0.5, top_k=3, repetition_penalty=2, log_probabilities=4, seed=1)
    pieces = list(stream(model, None, Request(tuple(PROMPTS[1]), settings)))
    told = [each for piece in pieces for each in piece.log_probabilities]
    tokens = [token for piece in pieces for token in piece.tokens]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[1] + tokens])).logits[0]
    expected = logits.log_softmax(-1)[len(PROMPTS[1]) - 1 : -1]

    assert tokens == [each.token for each in told]
    for row, each in zip(expected, told, strict=True):
        values, ids = row.topk(4)
        assert abs(float(row[each.token]) - each.log_probability) < 1e-4
        assert ids.tolist() == [other.token for other in each.alternatives]
        assert torch.allclose(values, torch.tensor([other.log_probability for other in each.alternatives]), atol=1e-4)


# --- answers


def test_answers_do_not_depend_on_how_many_are_written_at_once(model):
    settings = Generation(max_new_tokens=10, temperature=1.3, top_p=0.9)
    answers = [
        answer_all(model, PROMPTS, settings.model_copy(update={"batch_size": size}), stop_ids=(5,), seed=3)
        for size in (1, 4, 32)
    ]

    assert answers[0] == answers[1] == answers[2]
    assert answers[0] != answer_all(model, PROMPTS, settings, stop_ids=(5,), seed=4)
    assert len({tuple(each) for each in answer_all(model, PROMPTS[:1] * 5, settings, stop_ids=(5,))}) == 5


def test_the_best_of_several_is_the_likeliest_or_the_one_with_the_best_score(model, tokenizer):
    def mean_log_probability(tokens: list[int]) -> float:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([PROMPTS[0] + tokens])).logits[0].log_softmax(-1)
        places = range(len(PROMPTS[0]) - 1, len(PROMPTS[0]) + len(tokens) - 1)
        return float(np.mean([float(logits[p, t]) for p, t in zip(places, tokens, strict=True)]))

    one, eight = (Generation(max_new_tokens=6, temperature=2, best_of=count) for count in (1, 8))
    single = [mean_log_probability(answer_all(model, PROMPTS[:1], one, stop_ids=(), seed=s)[0]) for s in range(6)]
    best = [mean_log_probability(answer_all(model, PROMPTS[:1], eight, stop_ids=(), seed=s)[0]) for s in range(6)]
    assert np.mean(best) > np.mean(single)
    scored = eight.model_copy(update={"best_by": Generation(temperature=1, best_of=2, best_by="length_match").best_by})
    asked = Conversation((Message("user", "?"), Message("assistant", "1234")))
    (tokens,) = answer_all(model, PROMPTS[:1], scored, stop_ids=(), tokenizer=tokenizer, conversations=[asked], seed=0)
    assert tokens


def test_a_stop_string_ends_an_answer_and_no_part_of_it_is_shown(model, tokenizer):
    plain = "".join(stream_answer(model, tokenizer, PROMPTS[1], Generation(max_new_tokens=30), stop_ids=()))
    stop = plain[8:11]
    settings = Generation(max_new_tokens=30, stop=(stop, "never"))
    pieces = list(stream(model, tokenizer, Request(tuple(PROMPTS[1]), settings)))

    assert "".join(piece.text for piece in pieces) == plain[: plain.index(stop)] == cut_at(plain, settings.stop)
    assert (pieces[-1].finish_reason, pieces[-1].stop) == ("stop", stop)
    assert not any(piece.text.endswith(stop[:1]) and plain[8:9] == stop[:1] for piece in pieces[-2:-1])


@pytest.mark.parametrize("text", ["春风又绿江南岸，明月何时照我还？", "a 𠀀😀é\n…", "plain"])
def test_text_comes_in_whole_characters(text):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens]

    assert not any("\ufffd" in piece for piece in pieces)
    assert text == "".join(pieces) + stream.finish()


# --- settings


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_stands_for_its_values_and_gives_way_to_others(name):
    found = Generation(preset=name)

    assert {**Generation().model_dump(), **PRESETS[name], "preset": name} == found.model_dump()
    assert Generation(preset=name, temperature=0.77).temperature == 0.77
    assert Generation.model_validate(found.model_dump()) == found
    assert PRESET_NOTES[name]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"best_of": 3}, "at temperature 0 are all the same"),
        ({"best_by": "chrf"}, "there is one answer to choose from"),
        ({"stop": ("",)}, "would end every answer at once"),
        ({"num_beams": 4, "temperature": 1, "stop": "x"}, "has no temperature, stop"),
        ({"preset": "poem"}, "'poetry'"),
        ({"repetition_penalty": 0}, "greater than 0"),
        ({"presence_penalty": 3}, "less than or equal to 2"),
        ({"top_p": 0}, "greater than 0"),
        ({"constraint": {"type": "chioce", "choices": ["a"]}}, "did you mean 'choice'"),
    ],
)
def test_settings_that_cannot_work_say_why(settings, said):
    with pytest.raises(ValueError, match=said):
        Generation(**settings)


# --- constraints


def constrained(model, tokenizer, constraint: dict, count: int = 60, **settings) -> list[str]:
    asked = Generation(max_new_tokens=count, constraint=constraint, temperature=1.5, **settings)
    stop = (tokenizer.eos_token_id,)
    answers = answer_all(model, PROMPTS[:4], asked, stop_ids=stop, tokenizer=tokenizer)
    return [tokenizer.decode(answer) for answer in answers]


SCHEMA = {
    "type": "object",
    "properties": {"moon": {"type": "boolean"}, "pine": {"enum": ["river", "hill"]}},
    "required": ["moon", "pine"],
    "additionalProperties": False,
}


def test_a_schema_is_kept(model, tokenizer):
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        for answer in constrained(model, tokenizer, {"type": "json_schema", "json_schema": schema}):
            found = json.loads(answer)
            assert set(found) == {"moon", "pine"}
            assert isinstance(found["moon"], bool)
            assert found["pine"] in ("river", "hill")


def test_a_regular_expression_is_kept(model, tokenizer):
    import re

    for answer in constrained(model, tokenizer, {"type": "regex", "pattern": "(moon|rain){2,3} [0-9]+"}, seed=1):
        assert re.match("^(moon|rain){2,3} [0-9]*", answer)


def test_a_choice_is_one_of_the_list(model, tokenizer):
    choices = ["moon", "moonlight", "river", "a boat"]
    found = constrained(model, tokenizer, {"type": "choice", "choices": choices})

    assert set(found) <= set(choices)


def test_beams_keep_a_constraint(model, tokenizer):
    settings = Generation(max_new_tokens=40, num_beams=3, constraint={"type": "choice", "choices": ["moon", "rain"]})
    (answer,) = answer_all(model, PROMPTS[:1], settings, stop_ids=(tokenizer.eos_token_id,), tokenizer=tokenizer)

    assert tokenizer.decode(answer) in ("moon", "rain")


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ({"type": "json_schema", "json_schema": "[1]"}, "a schema is an object"),
        ({"type": "json_schema", "json_schema": "{"}, "constraint json_schema"),
        ({"type": "json_schema", "json_schema": {"type": "objet"}}, "constraint json_schema"),
        ({"type": "regex", "pattern": "(a"}, "constraint regex"),
    ],
)
def test_constraints_that_cannot_be_kept_say_why(model, tokenizer, constraint, said):
    with pytest.raises(UserError, match=said):
        constrained(model, tokenizer, constraint)


# --- a talk with a model in memory


def test_a_talk_tells_how_fast_it_was_and_answers_anew(saved_model, tmp_path):
    talk = Talk.load(str(saved_model("qwen3")), "Be kind.", Generation(max_new_tokens=6), "cpu")
    first, again = "".join(talk.ask("moon")), "".join(talk.again())

    assert first == again
    assert talk.speed is not None
    assert 0 < talk.speed.tokens <= 6
    assert talk.speed.seconds > 0
    talk.change("temperature=2")
    assert {"".join(talk.again()) for _ in range(4)} != {first}
    edited = "".join(talk.edit("rain"))
    assert [message.content for message in talk.said] == ["rain", edited]


def test_what_was_thought_is_saved_apart_from_what_was_said(saved_model, tmp_path):
    talk = Talk.load(str(saved_model("qwen3")), None, Generation(), "cpu")
    talk.said = [Message("user", "1 + 1?"), Message("assistant", "<think>\nwell\n</think>\n\n2")]
    talk.save(tmp_path / "talk.jsonl")
    (row,) = read_jsonl(tmp_path / "talk.jsonl")

    assert row["messages"] == [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "well"},
    ]
