"""Tool calls through official templates, in the dialogue and in evaluation."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunesmith.data.conversation import Conversation, Message
from tunesmith.generation.settings import Generation
from tunesmith.run.chat import Talk
from tunesmith.run.evaluate import Contestant, Questions
from tunesmith.scoring import SCORERS
from tunesmith.templates.chat import ChatTemplate
from tunesmith.templates.replies import open_reasoning, read_reply, same_calls
from tunesmith.templates.tool_calls import ToolCall

OFFICIAL = Path(__file__).parents[3] / "shared" / "templates"

MISTRAL = """\
{%- for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}
{%- for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}
{%- endfor %}</s>{% endif %}{% endfor %}"""

QUESTION = "How is it?"
# where an answer begins after the header of its turn: at the first mark of a call, or what closes reasoning
ANSWER_BEGINS = re.compile(r"\s*(</think>|<tool_call>|<\|tool_call>|<｜DSML｜|\n?Action:|<\|channel\|>)")

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where."},
                "days": {"type": "integer", "description": "How many."},
                "sure": {"type": "boolean", "description": "Is it so?"},
            },
            "required": ["city"],
        },
    },
}


def byte_tokenizer(template: str, special: list[str], **named: str | None) -> PreTrainedTokenizerFast:
    """Bytes as tokens, besides the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={each: index for index, each in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=special, clean_up_tokenization_spaces=False, **named
    )
    tokenizer.chat_template = template
    return tokenizer


def official(entry: dict) -> ChatTemplate:
    source = (OFFICIAL / f"{entry['id']}.jinja").read_text("utf-8")
    control = r"<\|[^|<>\n{}' ]{1,40}\|>|<｜[^｜\n{}]{1,40}｜>|<turn\|>|<\|turn>|\[/?[A-Z_]+\]"
    keys = ("bos_token", "eos_token", "pad_token", "unk_token")
    named = {key: entry["special_tokens"].get(key) or None for key in keys}
    return ChatTemplate(byte_tokenizer(source, sorted(set(re.findall(control, source)) - set(named.values())), **named))


def made_up(chance: random.Random) -> ToolCall:
    text = "".join(chance.choice("ab c\"'{}[]<>/,:\\上海🙂") for _ in range(chance.randint(1, 12))).strip() or "x"
    arguments = {"city": text, "days": chance.randint(-3, 10**6), "sure": chance.random() < 0.5}
    return ToolCall("get_weather", arguments, f"abcdef{chance.randint(100, 999)}")  # Mistral's ids have nine characters


def answer_in(template: ChatTemplate, calls: list[ToolCall]) -> tuple[str, str]:
    """Return what serving would see of a turn with *calls*, through the token that ends it, and its prompt."""
    question = Message("user", QUESTION)
    turn = Message("assistant", "", tool_calls=tuple(call.as_message_part() for call in calls))
    prompt = template.render([question], tools=[TOOL], prompt=True)
    through = template.render([question, turn], tools=[TOOL], prompt=False)
    if not through.startswith(prompt):  # history leaves out the reasoning that the prompt opens; the answer closes it
        after = through[through.rindex(QUESTION) + len(QUESTION) :]
        return (open_reasoning(prompt) or "") + after[after.index(ANSWER_BEGINS.search(after)[0]) :], prompt
    return through[len(prompt) :], prompt


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="../shared/templates is not here")
def test_calls_of_official_templates_are_read_back():
    """Whatever an official template writes for a call is read as that call: 30 made-up turns each, one call or two."""
    forms: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for entry in json.loads((OFFICIAL / "index.json").read_text("utf-8")):
        if not entry["supports_tools"]:
            continue
        template = official(entry)
        form = template.call_form.form
        forms[form.type_name() if form else template.call_form.reason] += 1
        chance = random.Random(entry["id"])
        for turn in range(30 if form else 0):
            calls = [made_up(chance) for _ in range(1 + turn % 2)]
            try:
                text, prompt = answer_in(template, calls)
            except ValueError:
                kept["refused by the template"] += 1
                continue
            if text.count(calls[0].name) < len(calls):
                kept["only one call written"] += 1
                continue
            last = text.rindex(calls[-1].name)
            text = text[: min((text.index(stop, last) for stop in template.stops if stop in text[last:]), default=None)]
            reply = read_reply(text, form, tools=[TOOL], prompt=prompt)
            kept["right" if same_calls(reply.calls, calls) else f"wrong: {entry['id']}"] += 1
            kept["stopped before the call"] += any(stop in text for stop in template.stops)

    print(dict(forms), dict(kept))
    assert sum(count for what, count in kept.items() if what.startswith("wrong")) == 0
    assert kept["right"] > 20 * len(forms)


class Writer:
    """Stands for a model: it says what it is told to."""

    device = "cpu"

    def eval(self):
        return self


WRITTEN = 'I look.[TOOL_CALLS]get_weather[ARGS]{"city": "上海", "days": 2}'


def mistral() -> ChatTemplate:
    control = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]"]
    return ChatTemplate(byte_tokenizer(MISTRAL, control, eos_token="</s>", pad_token="</s>"))


def test_a_dialogue_shows_calls_readably_and_goes_on_with_what_was_written(monkeypatch):
    prompts = []

    def written(model, tokenizer, prompt, *rest, keep_control, **options):
        prompts.append(tokenizer.decode(prompt))
        assert keep_control
        yield from ("I lo", "ok.[TOOL_CALLS]", *WRITTEN.partition("]")[2], "</s>")

    monkeypatch.setattr("tunesmith.generation.sample.stream_answer", written)
    talk = Talk(Contestant(Writer(), mistral()), None, Generation())

    assert "".join(talk.ask("Hi")) == 'I look.\n→ get_weather(city="上海", days=2)'
    assert "".join(talk.ask("And?"))
    assert prompts[1].startswith(f"[INST]Hi[/INST]{WRITTEN}</s>[INST]And?")


def test_evaluation_writes_calls_as_json(monkeypatch):
    template = mistral()
    monkeypatch.setattr("tunesmith.generation.sample.answer_all", lambda *_, **__: template.encode([WRITTEN, "No."]))
    call = {"function": {"name": "get_weather", "arguments": {"city": "上海", "days": 2}}}
    asked = Conversation((Message("user", "Hi"), Message("assistant", "", tool_calls=(call,))), tools=(TOOL,))
    questions = Questions(conversations=[asked, asked], source="", answered=2, generation=Generation(), limit=99)
    answers = Contestant(Writer(), template)._answers(questions, print)

    assert answers == ['I look.\n{"arguments": {"city": "上海", "days": 2}, "name": "get_weather"}', "No."]
    assert [SCORERS.parse("tool_call_match").score(asked, answer).value for answer in answers] == [1, 0]
