"""Named templates: they write what the models' own do, every answer is learnt through its end, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.models.new_tokenizer import make_tokenizer
from tunesmith.models.schema import NewTokenizer
from tunesmith.run.base_template import choose_template
from tunesmith.run.settle import settle
from tunesmith.templates.chat import ChatTemplate
from tunesmith.templates.library import FOLDER, read_template, template_names

OFFICIAL = Path(__file__).parents[3] / "shared" / "templates"
NAMES = template_names()
# theirs too take no system message
NO_SYSTEM = {"gemma", "olmo", "orion", "danube", "yuan"}
# they leave past reasoning out, so that each answer is a sequence of its own
REWRITES_HISTORY = {"qwen3", "glm4_moe"}
# they write any role as it is called
ANY_ROLE = {"chatml", "qwen3", "glm4_moe"}

QUESTIONS, ANSWERS = ["Who sails?", "Where to?", "Who sails?"], ["A poet.", "To the hills.", "He does."]
TURNS = [
    Message(role, text)
    for asked, said in zip(QUESTIONS, ANSWERS, strict=True)
    for role, text in (("user", asked), ("assistant", said))
]
SYSTEM = Message("system", "Speak of rivers.")


@pytest.fixture(scope="module")
def marked():
    """One that has every token that any named template writes, with begin and end tokens."""
    made = make_tokenizer(NewTokenizer(vocabulary_size=300), ["a poet sails to the hills"])
    marks = sorted({mark for name in NAMES for mark in read_template(name).marks})
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": marks})
    return made


def conversations(name):
    yield TURNS
    yield TURNS[:2]
    if name not in NO_SYSTEM:
        yield [SYSTEM, *TURNS]
        yield [SYSTEM, *TURNS[:2]]


def render(name, tokenizer, messages, *, prompt=False):
    return ChatTemplate(tokenizer, name).render(messages, prompt=prompt)


def test_there_are_enough():
    assert len(NAMES) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_it_is_where_it_is_from_and_where_turns_end(name):
    found = read_template(name)
    lines = (FOLDER / f"{name}.jinja").read_text("utf-8").splitlines()

    assert found.summary.endswith(".")
    assert not found.summary.startswith(("source:", "stop:"))
    assert found.source
    assert found.stop
    assert len(lines) <= 40


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_a_prefix_of_the_answered_text_and_nothing_is_lost(name, marked):
    for messages in conversations(name):
        prompt = render(name, marked, messages[:-1], prompt=True)
        whole = render(name, marked, messages)

        assert whole.startswith(prompt)
        for message in messages:
            assert whole.count(message.content) >= sum(m.content == message.content for m in messages)


def trained_spans(sequences):
    """Each trained span of token sequences, behind the tokens that are before it."""
    for sequence in sequences:
        tokens, trained = sequence.tokens.tolist(), (sequence.weight > 0).tolist()
        begins = [i for i in range(1, len(tokens)) if trained[i] and not trained[i - 1]]
        for begin in begins:
            end = next((i for i in range(begin, len(tokens)) if not trained[i]), len(tokens))
            yield tokens[:begin], tokens[begin:end]


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_learnt_after_its_prompt_and_through_one_stop_token(name, marked):
    for messages in conversations(name):
        template = ChatTemplate(marked, name)
        (sequences,) = template.sequences([Conversation(tuple(messages))])
        spans = list(trained_spans(sequences))
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]

        assert len(spans) == len(answers)
        assert len(sequences) == 1 or name in REWRITES_HISTORY
        for (before, span), index in zip(spans, answers, strict=True):
            assert before == template.prompt(messages[:index])
            assert [token for token in span if token in template.stop_ids] == span[-1:]
            said = marked.decode(span[:-1])
            for mark in ("<think>", "</think>", "[SEP]"):
                said = said.replace(mark, "")
            assert said.strip() == messages[index].content


@pytest.mark.parametrize("name", NAMES)
def test_a_role_that_it_does_not_know_is_refused_or_written(name, marked):
    messages = [{"role": "user", "content": "Hi"}, {"role": "critic", "content": "Too short."}]
    text, refusal = "", ""
    try:
        text = render_jinja_template([messages], chat_template=read_template(name).jinja, eos_token="</s>")[0][0]
    except Exception as error:  # noqa: BLE001 - Jinja's own, whichever it is
        refusal = str(error)

    assert (
        ("critic" in text and "Too short." in text) if name in ANY_ROLE else "no place for the role critic" in refusal
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_system_message_is_written_or_refused(name, marked):
    if name in NO_SYSTEM:
        with pytest.raises(ValueError, match="no place for the role system"):
            render(name, marked, [SYSTEM, *TURNS])
    else:
        assert SYSTEM.content in render(name, marked, [SYSTEM, *TURNS])


def official():
    """(template, official template of the shared sample, whether with a system message) for each that it renders as."""
    if not OFFICIAL.is_dir():
        return
    entries = json.loads((OFFICIAL / "index.json").read_text("utf-8"))
    for name in NAMES:
        for line in read_template(name).renders_as:
            model, _, only = line.partition(" (")
            for entry in entries:
                if entry["model"] == model:
                    yield pytest.param(name, entry, only, id=f"{name}-{entry['id']}")


PLAIN = [list(messages) for messages in (TURNS, TURNS[:1], TURNS[:2], TURNS[:3])]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the sample of official templates is not here")
@pytest.mark.parametrize(("name", "entry", "only"), official())
def test_it_renders_as_the_official_template_does(name, entry, only):
    jinja = (OFFICIAL / f"{entry['id']}.jinja").read_text("utf-8")
    special = {key: value for key, value in entry["special_tokens"].items() if value is not None}
    told = {"without a system message)": [[]], "with a system message)": [[SYSTEM]]}.get(only, [[], [SYSTEM]])
    compared = 0
    for before in told:
        if before and name in NO_SYSTEM:
            continue
        for turns in PLAIN:
            messages = [[message.as_template_input() for message in [*before, *turns]]]
            asked = turns[-1].role == "user"
            texts = [
                render_jinja_template(messages, chat_template=text, add_generation_prompt=asked, **special)[0][0]
                for text in (jinja, read_template(name).jinja)
            ]
            compared += 1

            assert texts[0] == texts[1]
    assert compared >= 4


def test_enough_of_them_are_compared():
    if OFFICIAL.is_dir():
        assert len({parameter.values[0] for parameter in official()}) >= 20


@pytest.mark.parametrize("name", ["llama2", "qwen3", "vicuna", "mistral_v3", "chatglm3"])
def test_what_training_saves_renders_the_same(name, marked, tmp_path):
    """Every later tool takes the template from the tokenizer's files."""
    expected = [render(name, marked, messages) for messages in conversations(name)]
    marked.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)

    assert [
        saved.apply_chat_template([m.as_template_input() for m in messages], tokenize=False)
        for messages in conversations(name)
    ] == expected


@pytest.fixture
def base_model(saved_model, tmp_path):
    """A folder called like a base model of Qwen3, whose tokenizer has no chat template."""
    folder = tmp_path / "Qwen3-0.6B-Base"
    folder.mkdir()
    for file in saved_model("qwen3").iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_base_model_gets_the_template_of_its_family(make_recipe, base_model):
    settled = settle(make_recipe(model=str(base_model)))
    (told,) = [notice for notice in settled.plan.notices if notice.startswith("template:")]

    assert told == (
        "template: qwen3, because the tokenizer has no chat template and this is the one for base models of the "
        "family Qwen3"
    )
    assert settled.prepared.template.tokenizer.chat_template == read_template("qwen3").jinja


def test_a_tokenizer_keeps_its_own_template(make_recipe, tokenizer):
    assert choose_template(make_recipe(), tokenizer) == ("auto", ())


def test_a_template_whose_end_is_no_token_is_refused_with_what_would_do(make_recipe):
    plain = make_tokenizer(NewTokenizer(vocabulary_size=300), ["a"])

    with pytest.raises(UserError) as raised:
        choose_template(make_recipe(template="llama3"), plain)
    assert str(raised.value) == (
        "template.name: llama3 ends turns with <|eot_id|>, which is no token of this tokenizer; add it, with "
        "model.new_tokens: ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'], or use a template of plain "
        "text, such as template: alpaca"
    )


def test_marks_that_are_no_tokens_are_told(make_recipe):
    plain = make_tokenizer(NewTokenizer(vocabulary_size=300), ["a"])

    (told,) = choose_template(make_recipe(template="zephyr"), plain).notices
    assert told.startswith("template: zephyr writes <|system|>, <|user|>, <|assistant|>, which the tokenizer spells")


def test_new_tokens_make_a_template_fit(make_recipe, saved_model):
    marks = list(read_template("llama3").marks)
    model = {"path": str(saved_model("qwen3")), "new_tokens": marks}
    settled = settle(make_recipe(template="llama3", model=model))
    template = settled.prepared.template

    assert template.tokenizer.convert_tokens_to_ids("<|eot_id|>") in template.stop_ids
    assert [notice for notice in settled.plan.notices if notice.startswith("template:")] == []
