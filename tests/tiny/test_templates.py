"""What is trained is what will be served: checked on templates of every style, and on official ones where they are."""

import json
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunesmith.core.errors import DataError, UserError
from tunesmith.data.conversation import Conversation, Message, Origin
from tunesmith.templates.chat import ChatTemplate, special_token_counts
from tunesmith.templates.learning import Learning
from tunesmith.templates.library import check_template_name, read_template, template_names

OFFICIAL = Path(__file__).parents[3] / "shared" / "templates"

# --- templates of our own, each in the style of a family

CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\\n\\n' + m.content | trim + '<|eot|>' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"""

# the system prompt is folded into the first question, and nothing stands before an answer
MISTRAL = """\
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for m in messages %}
{%- if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}
{%- elif m.role == 'user' %}{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}
{%- else %}{{ ' ' + m.content + eos_token }}
{%- endif %}{% endfor -%}"""

# past reasoning is dropped; the last turn has an empty one where it has none
QWEN3 = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}
{{- '<|im_start|>assistant\\n<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}
{{- m.content + '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

# the end of a turn is not the tokenizer's end token (Gemma), and the next turn's opening follows it (Aquila)
GEMMA = CHATML.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|/turn|>")
AQUILA = CHATML.replace(
    "{% if add_generation_prompt %}", "{% if add_generation_prompt or messages[-1].role != 'user' %}"
)

STRIPPING = CHATML.replace("m.content +", "m.content | trim +")
ENDLESS = CHATML.replace("<|im_end|>", "")
STRICT = (
    """\
{%- for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}{% endfor %}"""
    + CHATML
)

# the generation prompt opens reasoning that the turn does not have (QwQ), or closes it too (Gemma 4)
OPEN_THINKING = CHATML.replace("<|im_start|>assistant\\n' }}{% endif", "<|im_start|>assistant\\n<think>\\n' }}{% endif")
CLOSED_THINKING = OPEN_THINKING.replace("<think>\\n' }}", "<think></think>' }}")
# what is said is judged, not answered; an end of turn stands before the answer
GUARD = """\
{%- for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor -%}
{{ 'Is it harmful?<|im_end|>\\n<|im_start|>assistant\\n' }}"""
STOPPING = CHATML.replace("m.content", "('<|im_end|>' if m.role == 'assistant' else '') + m.content")
SILENT = CHATML.replace("m.content", "(m.content if m.role != 'assistant' else '')")
FALTERING = CHATML.replace("m.content", "m.content + none")

# what the model writes is marked, for transformers' own mask
MARKED = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

STYLES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "aquila": AQUILA,
    "stripping": STRIPPING,
    "endless": ENDLESS,
    "strict": STRICT,
    "closed thinking": CLOSED_THINKING,
}
REWRITES_HISTORY = {"qwen3", "endless", "closed thinking"}
CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "<|turn|>",
    "<|/turn|>",
    "[INST]",
    "[/INST]",
]
ENDS = {"llama3": "<|eot|>", "mistral": "</s>", "gemma": "<|/turn|>"}


def byte_tokenizer(template: str | None, special: list[str] = CONTROL, **named: str | None) -> PreTrainedTokenizerFast:
    """Bytes as tokens, besides the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={each: index for index, each in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return finished(inner, template, special, **named)


def space_first_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """As SentencePiece does, put a space before whatever is encoded."""
    pieces = ["▁", *sorted(set("".join(STYLES.values()) + "Good morning. Hi! Bye? yes no"))]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {
        piece: index for index, piece in enumerate(dict.fromkeys([*bytes_, *(p for p in pieces if p not in " \n")]))
    }
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return finished(inner, template, CONTROL)


def finished(
    inner: Tokenizer, template: str | None, special: list[str], **named: str | None
) -> PreTrainedTokenizerFast:
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **named}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=special, clean_up_tokenization_spaces=False, **named
    )
    tokenizer.chat_template = template
    return tokenizer


def dialogue(*contents: str, system: str = "", trained: tuple[bool | None, ...] = ()) -> Conversation:
    """Questions and answers by turns."""
    messages = [Message("system", system)] if system else []
    for index, content in enumerate(contents):
        learnt = trained[index // 2] if trained and index % 2 else None
        messages.append(Message("assistant" if index % 2 else "user", content, trained=learnt))
    return Conversation(tuple(messages), origin=Origin("rows.jsonl", 1))


def text_of(template: ChatTemplate, tokens) -> str:
    return template.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def spans(template: ChatTemplate, sequence) -> list[tuple[int, int]]:
    """Return where the trained tokens of a sequence begin and end; the end of a turn ends a span."""
    out, begin = [], None
    for index, (token, weight) in enumerate(zip(sequence.tokens.tolist(), sequence.weight.tolist(), strict=True)):
        if begin is not None and not weight:
            out.append((begin, index))
        begin = (index if begin is None else begin) if weight else None
        if weight and token in template.stop_ids:
            out.append((begin, index + 1))
            begin = None
    return out if begin is None else [*out, (begin, len(sequence))]


def replies(template: ChatTemplate, sequences) -> list[str]:
    """Return the text of every trained span, told from the text before it."""
    return [
        text_of(template, sequence.tokens[:end])[len(text_of(template, sequence.tokens[:begin])) :]
        for sequence in sequences
        for begin, end in spans(template, sequence)
    ]


def served(template: ChatTemplate, conversation: Conversation) -> list[list[int]]:
    """Return what generation would be given for each assistant turn."""
    messages = conversation.messages
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    return [template.encode([template.render(messages[:i], tools=conversation.tools, prompt=True)])[0] for i in turns]


MORNING = dialogue("Hi", "Good morning.", "Bye?", "Bye!", "Sure?", "  Yes, 春风又绿江南岸 🙂 \n sure")
each_style = pytest.mark.parametrize("style", STYLES)
each_tokenizer = pytest.mark.parametrize("make", [byte_tokenizer, space_first_tokenizer])


@each_tokenizer
@each_style
def test_every_answer_is_trained_once_after_the_prompt_that_serving_sees(style, make):
    template = ChatTemplate(make(STYLES[style]))
    (sequences,) = template.sequences([MORNING])
    found = [(sequence, begin, end) for sequence in sequences for begin, end in spans(template, sequence)]

    assert [sequence.tokens[:begin].tolist() for sequence, begin, _ in found] == served(template, MORNING)
    assert all(sequence.tokens[end - 1] in template.stop_ids for sequence, _, end in found)


@each_tokenizer
@each_style
def test_trained_tokens_are_the_answer_and_the_end_of_its_turn(style, make):
    template = ChatTemplate(make(STYLES[style]))
    end = {"endless": "\n</s>"}.get(style) or ENDS.get(style, "<|im_end|>")
    before = {"qwen3": "<think>\n\n</think>\n\n", "mistral": " "}.get(style, "")
    said = [message.content for message in MORNING.messages if message.role == "assistant"]
    if style in ("stripping", "llama3"):
        said = [text.strip() for text in said]

    (sequences,) = template.sequences([MORNING])

    assert replies(template, sequences) == [before + text + end for text in said]


@each_style
def test_turns_are_one_sequence_unless_history_is_rewritten(style):
    template = ChatTemplate(byte_tokenizer(STYLES[style]))
    (sequences,) = template.sequences([MORNING])

    assert len(sequences) == (3 if style in REWRITES_HISTORY else 1)
    assert sum(len(spans(template, sequence)) for sequence in sequences) == 3


@each_style
def test_the_last_prompt_is_what_evaluation_and_chat_are_given(style):
    template = ChatTemplate(byte_tokenizer(STYLES[style]))

    assert template.prompts([MORNING]) == served(template, MORNING)[-1:]
    assert template.prompt(MORNING.messages[:-1]) == template.prompts([MORNING])[0]


@each_style
def test_a_sequence_decodes_to_what_the_template_writes(style):
    """Through the last end of turn; what a template writes after it belongs to the next prompt."""
    template = ChatTemplate(byte_tokenizer(STYLES[style]))
    (sequences,) = template.sequences([MORNING])
    text = text_of(template, sequences[-1].tokens)
    whole = template.render(MORNING.messages, prompt=False)
    if style == "closed thinking":
        whole = whole.replace("assistant\n  Yes", "assistant\n<think></think>  Yes")
    if style == "endless":
        whole += "</s>"

    assert whole.startswith(text)
    assert "Yes" not in whole[len(text) :]


@each_style
def test_no_sequence_begins_or_ends_twice(style):
    template = ChatTemplate(byte_tokenizer(STYLES[style]))
    (sequences,) = template.sequences([MORNING])

    assert special_token_counts(sequences, template.tokenizer) == {"duplicated_begin": 0, "duplicated_end": 0}


def test_a_turn_that_must_not_be_learnt_is_only_read():
    template = ChatTemplate(byte_tokenizer(CHATML))
    (sequences,) = template.sequences([dialogue("a", "one", "b", "two", "c", "three", trained=(True, False, None))])

    assert replies(template, sequences) == ["one<|im_end|>", "three<|im_end|>"]


def test_a_rewritten_turn_that_must_not_be_learnt_has_no_sequence():
    template = ChatTemplate(byte_tokenizer(QWEN3))
    (sequences,) = template.sequences([dialogue("a", "one", "b", "two", trained=(False, True))])

    assert [reply[-13:] for reply in replies(template, sequences)] == ["\n\ntwo<|im_end|>"[-13:]]


@pytest.mark.parametrize("style", ["chatml", "llama3", "mistral", "qwen3"])
def test_prompts_are_learnt_on_request_and_then_each_token_once(style):
    template = ChatTemplate(byte_tokenizer(STYLES[style]))
    (sequences,) = template.sequences([MORNING], Learning(prompt_weight=1.0))
    learnt = "".join(replies(template, sequences))

    assert [learnt.count(text) for text in ("Hi", "Bye?", "Sure?")] == [1, 1, 1]
    assert all(sequence.weight[0] == 0 for sequence in sequences)


def test_reasoning_is_learnt_in_its_own_turn_and_gone_from_history():
    messages = [Message("user", "2+2?"), Message("assistant", "4", reasoning="two and two"), Message("user", "+1?")]
    messages.append(Message("assistant", "5", reasoning="four and one"))
    template = ChatTemplate(byte_tokenizer(QWEN3))
    ((first, second),) = template.sequences([Conversation(tuple(messages))])

    assert replies(template, [first]) == ["<think>\ntwo and two\n</think>\n\n4<|im_end|>"]
    assert replies(template, [second]) == ["<think>\nfour and one\n</think>\n\n5<|im_end|>"]
    assert "two and two" not in text_of(template, second.tokens)
    assert template.notes["lost_reasoning"] == 0


def test_reasoning_that_a_template_does_not_write_is_counted():
    template = ChatTemplate(byte_tokenizer(CHATML))
    template.sequences([Conversation((Message("user", "2+2?"), Message("assistant", "4", reasoning="two and two")))])

    assert template.notes["lost_reasoning"] == 1


@pytest.mark.parametrize("content", ["<think>a b</think>c", "<think>\na b\n</think>\n\nc"])
def test_reasoning_in_the_content_may_be_spaced_as_the_template_likes(content):
    spaced = CHATML.replace("m.content +", "m.content.replace('>a', '>\\na').replace('b<', 'b\\n<') +")
    template = ChatTemplate(byte_tokenizer(spaced))
    (sequences,) = template.sequences([dialogue("x", content)])

    assert replies(template, sequences)[0].endswith("c<|im_end|>")


def test_arguments_are_the_same_in_training_and_serving():
    template = ChatTemplate(byte_tokenizer(QWEN3), "auto", {"enable_thinking": False})
    conversation = dialogue("Hi", "Good morning.")
    ((sequence,),) = template.sequences([conversation])

    assert text_of(template, template.prompts([conversation])[0]).endswith("assistant\n<think>\n\n</think>\n\n")
    assert replies(template, [sequence]) == ["Good morning.<|im_end|>"]


@pytest.mark.parametrize("value", [True, False, 3, 1.5, None, 'a "b" \\ {{ %} 春\n', ["x", 1], {"a": [True]}])
def test_an_argument_reaches_the_template_as_it_was_written(value):
    shown = "{{ shown | tojson if shown is defined else 'nothing' }}"
    template = ChatTemplate(byte_tokenizer(shown), "auto", {"shown": value})

    assert json.loads(template.render([Message("user", "Hi")], prompt=True)) == value


def test_who_serves_may_still_say_otherwise():
    template = ChatTemplate(byte_tokenizer(QWEN3), "auto", {"enable_thinking": False})
    said = template.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False, enable_thinking=True
    )

    assert said.endswith("assistant\n")


@pytest.mark.parametrize(
    ("style", "name", "said"),
    [
        (QWEN3, "enable_thinkng", r"template.arguments.enable_thinkng: .* \(did you mean 'enable_thinking'\?\)"),
        (QWEN3, "nosuch", "the template has no such argument; it has enable_thinking"),
        (CHATML, "nosuch", "the template has no such argument; it has none"),
        (MARKED, "nosuch", "the template has no such argument; it has none"),
        ("{% for %}", "nosuch", "template: line 1 of it cannot be read"),
    ],
)
def test_an_argument_that_a_template_does_not_take_is_refused(style, name, said):
    with pytest.raises(UserError, match=said):
        ChatTemplate(byte_tokenizer(style), "auto", {name: True})


def test_an_end_that_is_missing_is_added_and_counted():
    template = ChatTemplate(byte_tokenizer(ENDLESS))
    template.sequences([MORNING])

    assert template.notes["ends_added"] == 3


def test_the_token_that_ends_turns_is_found_by_rendering():
    template = ChatTemplate(byte_tokenizer(GEMMA))

    assert template.stop_ids == tuple(template.tokenizer.convert_tokens_to_ids(["<|/turn|>", "</s>"]))


def test_what_follows_the_end_of_a_turn_is_not_learnt():
    template = ChatTemplate(byte_tokenizer(AQUILA))
    (sequences,) = template.sequences([dialogue("Hi", "Good morning.")])

    assert replies(template, sequences) == ["Good morning.<|im_end|>"]


# --- what is refused


@pytest.mark.parametrize(
    ("template", "conversation", "reason"),
    [
        (
            GUARD,
            dialogue("Hi", "Bye"),
            "message 1: the template does not write this answer after its own generation prompt",
        ),
        (SILENT, dialogue("Hi", "Bye"), "message 1: the template does not write the answer 'Bye'"),
        (STRICT, dialogue("Hi", "Bye", system="Be kind."), "the template refuses it: roles must alternate"),
        (FALTERING, dialogue("Hi", "Bye"), "the template refuses it: can only concatenate str"),
        (
            STOPPING,
            dialogue("Hi", "Bye"),
            "message 1: the template writes '<|im_end|>', at which a turn ends, before the answer is complete",
        ),
        (CHATML, dialogue("Hi"), "no assistant turn to learn"),
        (CHATML, dialogue("Hi", "Bye", trained=(False,)), "no assistant turn to learn"),
        (CHATML, Conversation(text="plain"), "plain text, not a dialogue; use stage: pretrain"),
        ("{% for m in messages %}{{ m.nosuch.thing }}{% endfor %}", dialogue("Hi", "Bye"), "the template refuses it:"),
        ("{% for m in messages %}", dialogue("Hi", "Bye"), "the template refuses it: Unexpected end of template"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_reason(template, conversation, reason):
    with pytest.raises(DataError) as caught:
        ChatTemplate(byte_tokenizer(template)).sequences([conversation])

    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{conversation.origin}: ")


def test_all_that_do_not_fit_are_counted_and_the_first_are_named():
    rows = [dialogue("Hi", "Bye", system="x" if index % 2 else "") for index in range(40)]
    with pytest.raises(DataError) as caught:
        ChatTemplate(byte_tokenizer(STRICT)).sequences(rows)

    assert len(str(caught.value).splitlines()) == 11
    assert str(caught.value).endswith("20 of 40 conversations do not fit the template")


def test_a_tokenizer_without_a_template_says_so():
    template = ChatTemplate(byte_tokenizer(None))

    assert not template.has_chat
    with pytest.raises(UserError, match=r"has no chat template .*such as template: alpaca"):
        template.prompt([Message("user", "Hi")])


# --- named templates


@pytest.mark.parametrize("name", template_names())
def test_a_named_template_is_documented_and_ends_its_turns(name):
    found = read_template(name)

    assert found.summary.endswith(".")
    assert found.stop
    assert check_template_name(name) == name


@pytest.mark.parametrize("name", ["alpaca", "chatml"])  # the others, with their tokens, in test_named_templates.py
@each_tokenizer
def test_a_named_template_trains_what_it_serves(name, make):
    template = ChatTemplate(make(None), name)
    (sequences,) = template.sequences([MORNING])
    found = [(sequence, begin) for sequence in sequences for begin, _ in spans(template, sequence)]

    assert [sequence.tokens[:begin].tolist() for sequence, begin in found] == served(template, MORNING)
    assert template.notes["ends_added"] == 0
    assert template.tokenizer.chat_template == read_template(name).jinja


def test_alpaca_reads_as_its_authors_wrote_it():
    template = ChatTemplate(byte_tokenizer(None), "alpaca")

    assert template.render([Message("system", "Be kind."), Message("user", "Hi")], prompt=True) == (
        "Be kind.\n\n### Instruction:\nHi\n\n### Response:\n"
    )


def test_a_named_template_whose_tokens_are_missing_is_refused():
    with pytest.raises(UserError, match=r"chatml ends turns with <\|im_end\|>, which is no token of this tokenizer"):
        ChatTemplate(byte_tokenizer(None, special=[]), "chatml")


def test_a_named_template_that_needs_an_end_token_is_refused_without_one():
    with pytest.raises(UserError, match="alpaca ends turns with the tokenizer's end token, but it has none"):
        ChatTemplate(byte_tokenizer(None, eos_token=None), "alpaca")


def test_a_template_can_be_a_file(tmp_path):
    path = tmp_path / "我的.jinja"
    path.write_text("{#- Mine.\nstop: <|eot|> -#}\n" + LLAMA3, encoding="utf-8")
    template = ChatTemplate(byte_tokenizer(None), str(path))
    (sequences,) = template.sequences([dialogue("Hi", "Bye")])

    assert replies(template, sequences) == ["Bye<|eot|>"]


@pytest.mark.parametrize(
    ("name", "said"), [("chat_ml", "did you mean 'chatml'"), ("no/x.jinja", "no such file: no/x.jinja")]
)
def test_an_unknown_template_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        check_template_name(name)


# --- against transformers' own mask, where a template marks what is generated


@pytest.mark.parametrize("conversation", [MORNING, dialogue("Hi", "Bye", system="Be kind."), dialogue("", "")])
def test_the_mask_is_transformers_own_where_a_template_marks_what_is_generated(conversation):
    tokenizer = byte_tokenizer(MARKED)
    ((sequence,),) = ChatTemplate(tokenizer).sequences([conversation])
    theirs = tokenizer.apply_chat_template(
        [message.as_template_input() for message in conversation.messages],
        return_assistant_tokens_mask=True,
        return_dict=True,
        tokenize=True,
    )
    newline = len(theirs["input_ids"]) - len(sequence)  # after the last end of turn, which nobody reads

    assert newline == 1
    assert sequence.tokens.tolist() == theirs["input_ids"][:-newline]
    assert sequence.weight.tolist() == theirs["assistant_masks"][:-newline]


# --- official templates and tokenizers, where they are


@cache
def official_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(OFFICIAL.parent / "tokenizers" / name)


@pytest.mark.parametrize("name", ["gpt2", "llama2-spm", "llama3", "mistral-v3-spm", "phi3-spm"])
@pytest.mark.parametrize("style", ["alpaca", "mistral"])
def test_official_tokenizers_train_what_they_serve(name, style):
    if not (OFFICIAL.parent / "tokenizers" / name).is_dir():
        pytest.skip("../shared/tokenizers is not here")
    tokenizer = official_tokenizer(name)
    tokenizer.chat_template = MISTRAL
    template = ChatTemplate(tokenizer, "alpaca" if style == "alpaca" else "auto")
    (sequences,) = template.sequences([MORNING])
    found = [(sequence, begin) for sequence in sequences for begin, _ in spans(template, sequence)]
    said = [message.content for message in MORNING.messages if message.role == "assistant"]
    before = "" if style == "alpaca" else " "

    assert [sequence.tokens[:begin].tolist() for sequence, begin in found] == served(template, MORNING)
    assert replies(template, sequences) == [before + text + tokenizer.eos_token for text in said]
