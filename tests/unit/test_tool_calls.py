"""Tool calls: whatever form a template writes them in, they are read back, at once or piece by piece."""

import json
from functools import cache

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.conversation import Conversation, Message, normal_tool_call
from tunesmith.scoring import SCORERS
from tunesmith.templates.call_form import find_form
from tunesmith.templates.replies import (
    CallDelta,
    Reply,
    ReplyReader,
    TextDelta,
    read_reply,
    same_calls,
    split_reasoning,
)
from tunesmith.templates.tool_calls import TOOL_CALL_FORMS, ToolCall

# how the templates of a family write calls: ours, as short as can be; c is a call, a are its arguments
EACH = "{% for c in calls %}{% set a = c.arguments %}"
LISTED = """[{% for c in calls %}{{ {'name': c.name, 'arguments': c.arguments} | tojson }}
{{- ', ' if not loop.last }}{% endfor %}]"""
PYTHON = "{{ c.name }}({% for k, v in a.items() %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
TEXT = "{{ v if v is string else v | tojson }}"
NESTED = """{% macro inner(v) %}{% if v is mapping %}{% for k, each in v.items() -%}
]<]minimax[>[<{{ k }}>{{ inner(each) }}]<]minimax[>[</{{ k }}>{% endfor %}{% elif v is string %}{{ v }}
{%- elif v is sequence %}{% for each in v %}]<]minimax[>[<item>{{ inner(each) }}]<]minimax[>[</item>{% endfor %}
{%- else %}{{ v | tojson }}{% endif %}{% endmacro %}"""
GEMMA = """{% macro inner(v) %}{% if v is mapping %}{{ '{' }}{% for k, each in v.items() %}{{ k }}:{{ inner(each) }}
{{- ',' if not loop.last }}{% endfor %}{{ '}' }}{% elif v is string %}<|"|>{{ v }}<|"|>
{%- elif v is sequence %}[{% for each in v %}{{ inner(each) }}{{ ',' if not loop.last }}{% endfor %}]
{%- else %}{{ v | tojson }}{% endif %}{% endmacro %}"""

WRITTEN = {
    "command_a": "<|START_ACTION|>"
    + LISTED.replace("'name'", "'tool_name'").replace("'arguments'", "'parameters'")
    + "<|END_ACTION|>",
    "command_r": "\nAction:\n```json\n"
    + LISTED.replace("'name'", "'tool_name'").replace("'arguments'", "'parameters'")
    + "```",
    "deepseek_dsml": "\n\n<｜DSML｜function_calls>\n"
    + EACH
    + """<｜DSML｜invoke name="{{ c.name }}">
{% for k, v in a.items() %}<｜DSML｜parameter name="{{ k }}" string="{{ 'true' if v is string else 'false' }}">"""
    + TEXT
    + "</｜DSML｜parameter>\n{% endfor %}</｜DSML｜invoke>\n{% endfor %}</｜DSML｜function_calls>",
    "deepseek_r1": "<｜tool▁calls▁begin｜>"
    + EACH
    + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.name }}\n```json\n{{ a | tojson }}\n```<｜tool▁call▁end｜>\n"
    "{% endfor %}<｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜>"
    + EACH
    + "<｜tool▁call▁begin｜>{{ c.name }}<｜tool▁sep｜>{{ a | tojson }}<｜tool▁call▁end｜>"
    "{% endfor %}<｜tool▁calls▁end｜>",
    "functionary": EACH + "<function={{ c.name }}>{{ a | tojson }}</function>{% endfor %}",
    "gemma4": GEMMA + EACH + "<|tool_call>call:{{ c.name }}{{ inner(a) }}<tool_call|>{% endfor %}<|tool_response>",
    "gigachat": EACH + "<|message_sep|>\n\nfunction call<|role_sep|>\n{{ c | tojson }}{% endfor %}",
    "glm": EACH
    + "\n<tool_call>{{ c.name }}\n{% for k, v in a.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>"
    + TEXT
    + "</arg_value>\n{% endfor %}</tool_call>{% endfor %}",
    "granite": "<|tool_call|>" + LISTED,
    "harmony": EACH
    + "<|start|>assistant<|channel|>commentary to=functions.{{ c.name }} <|constrain|>json<|message|>{{ a | tojson }}"
    "<|call|>{% endfor %}",
    "hermes": EACH + '\n<tool_call>\n{"name": "{{ c.name }}", "arguments": {{ a | tojson }}}\n</tool_call>{% endfor %}',
    "hunyuan": "<tool_calls>" + LISTED + "</tool_calls>",
    "internlm": EACH
    + '<|action_start|><|plugin|>\n{"name": "{{ c.name }}", "parameters": {{ a | tojson }}}<|action_end|>'
    "\n{% endfor %}",
    "kimi_k2": "<|tool_calls_section_begin|>"
    + EACH
    + "<|tool_call_begin|>functions.{{ c.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ a | tojson }}"
    "<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>",
    "kimi_k3": "<|open|>response<|sep|><|close|>response<|sep|><|open|>tools<|sep|>"
    + EACH
    + """<|open|>call tool="{{ c.name }}" index="{{ loop.index }}"<|sep|>{% for k, v in a.items() -%}
<|open|>argument key="{{ k }}" type="{{ 'string' if v is string else 'other' }}"<|sep|>"""
    + TEXT
    + "<|close|>argument<|sep|>{% endfor %}<|close|>call<|sep|>{% endfor %}"
    "<|close|>tools<|sep|><|close|>message<|sep|>",
    "llama3": EACH + '{{ ";" if not loop.first }}{"name": "{{ c.name }}", "parameters": {{ a | tojson }}}{% endfor %}',
    "minicpm3": "<|tool_call_start|>\n```python\n" + EACH + PYTHON + "\n{% endfor %}```\n<|tool_call_end|>\n",
    "minicpm5": EACH
    + """<function name="{{ c.name }}">{% for k, v in a.items() %}<param name="{{ k }}">
{%- if v is string and ('<' in v or '\\n' in v) %}<![CDATA[{{ v }}]]>{% else %}"""
    + TEXT
    + "{% endif %}</param>{% endfor %}</function>\n{% endfor %}",
    "minimax_m2": "<minimax:tool_call>\n"
    + EACH
    + '<invoke name="{{ c.name }}">\n{% for k, v in a.items() %}<parameter name="{{ k }}">'
    + TEXT
    + "</parameter>\n{% endfor %}</invoke>\n{% endfor %}</minimax:tool_call>",
    "minimax_m3": NESTED
    + "]<]minimax[>[<tool_call>\n"
    + EACH
    + ']<]minimax[>[<invoke name="{{ c.name }}">{{ inner(a) }}]<]minimax[>[</invoke>\n{% endfor %}'
    "]<]minimax[>[</tool_call>",
    "mistral": "[TOOL_CALLS] " + LISTED,
    "mistral_arguments": EACH + "[TOOL_CALLS]{{ c.name }}[ARGS]{{ a | tojson }}{% endfor %}",
    "nemotron": "<TOOLCALL>" + LISTED + "</TOOLCALL>",
    "olmo3": "<function_calls>" + EACH + PYTHON + "{{ '\\n' if not loop.last }}{% endfor %}</function_calls>",
    "pythonic": "[" + EACH + PYTHON + "{{ ', ' if not loop.last }}{% endfor %}]",
    "qwen3_coder": EACH
    + "\n<tool_call>\n<function={{ c.name }}>\n{% for k, v in a.items() %}<parameter={{ k }}>\n"
    + TEXT
    + "\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}",
}
# nothing may be said before these; the marks of the rest stand anywhere
WHOLE_ANSWER = {"llama3", "pythonic"}
CHAT = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}
{%- if m.tool_calls %}{% set calls = m.tool_calls | map(attribute='function') | list %}@{% endif %}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "count": {"type": "integer"},
                    "share": {"type": "number"},
                    "sure": {"type": "boolean"},
                    "names": {"type": "array", "items": {"type": "string"}},
                    "place": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "floor": {"type": "integer"}},
                    },
                },
            },
        },
    }
    for name in ("find", "get_weather")
]


@cache
def compiled(source: str) -> jinja2.Template:
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(source)


def write(form: str, calls: list[ToolCall]) -> str:
    return compiled(WRITTEN[form]).render(calls=[{"name": c.name, "arguments": c.arguments} for c in calls])


def form_named(name: str):
    return TOOL_CALL_FORMS.get(name)()


def read_in_pieces(reader: ReplyReader, pieces: list[str]) -> Reply:
    """Read piece by piece, and put together what a client would have got."""
    deltas = [delta for piece in pieces for delta in reader.feed(piece)] + reader.finish()
    calls = [delta for delta in deltas if isinstance(delta, CallDelta)]
    assert [delta.index for delta in calls] == list(range(len(calls)))
    said = {
        kind: "".join(d.text for d in deltas if isinstance(d, TextDelta) and d.kind == kind)
        for kind in ("content", "reasoning")
    }
    return Reply(said["content"], said["reasoning"] or None, tuple(delta.call for delta in calls))


every_form = pytest.mark.parametrize("form", TOOL_CALL_FORMS.names())
# what breaks parsers: quotes, braces, tags, line breaks inside, other scripts
LETTERS = st.text(st.sampled_from("ab 12\"'\\{}[]()<>/=,:;\n上海🙂é"), min_size=1, max_size=12)
TEXTS = LETTERS.filter(lambda text: text == text.strip())
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXTS,
        "count": st.integers(-(10**12), 10**12),
        "share": st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3) + 0.0),
        "sure": st.booleans(),
        "names": st.lists(TEXTS, min_size=1, max_size=3),
        "place": st.fixed_dictionaries({"city": TEXTS, "floor": st.integers(0, 9)}),
    },
)
CALLS = st.lists(st.builds(ToolCall, st.sampled_from(["find", "get_weather"]), ARGUMENTS), min_size=1, max_size=3)


def test_every_form_is_written_here():
    assert sorted(WRITTEN) == TOOL_CALL_FORMS.names()


@every_form
@settings(max_examples=15, deadline=None)
@given(
    calls=CALLS, cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4), content=st.sampled_from(["", "Let me see."])
)
def test_calls_are_read_back_however_they_arrive(form, calls, cuts, content):
    content = "" if form in WHOLE_ANSWER else content
    text = content + write(form, calls)
    pieces, place = [], 0
    while place < len(text):
        pieces.append(text[place : place + cuts[len(pieces) % len(cuts)]])
        place += len(pieces[-1])
    whole = read_reply(text, form_named(form), tools=TOOLS)

    assert same_calls(whole.calls, calls), text
    assert whole.content == content
    assert read_in_pieces(ReplyReader(form_named(form), TOOLS), pieces) == whole


@every_form
@settings(max_examples=15, deadline=None)
@given(data=st.data(), calls=CALLS)
def test_nothing_that_a_model_writes_is_an_error(form, data, calls):
    """Cut off, mixed up, or with a piece missing: what cannot be read is content, the same however it arrives."""
    text = write(form, calls)
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    broken = data.draw(
        st.sampled_from([text[:begin], text[begin:], text[:begin] + text[end:], text[:end] + text[begin:]])
    )
    whole = read_reply(broken, form_named(form), tools=TOOLS)

    assert read_in_pieces(ReplyReader(form_named(form), TOOLS), list(broken)) == whole


@every_form
def test_a_call_that_is_cut_off_stays_content(form):
    text = write(form, [ToolCall("find", {"text": "a long way"})])
    cut = text[: text.index("a long") + 4]
    reply = read_reply(cut, form_named(form), tools=TOOLS)

    assert reply.calls == ()
    assert "find" in reply.content
    assert reply.content.endswith("a lo")


@every_form
def test_words_alone_are_content(form):
    for text in (
        "Hello, it is fine.",
        "",
        "a < b, {x} and [y] (z)",
        "```python\nf(a=1)\n```",
        '{"answer": 1}',
        "[1] see",
    ):
        assert read_reply(text, form_named(form)) == Reply(text)


@every_form
def test_calls_in_the_reasoning_are_not_made(form):
    call = write(form, [ToolCall("find", {"text": "x"})])
    text = f"<think>\nshall I {call}?\n</think>\n\n{call}"
    reply = read_reply(text, form_named(form), tools=TOOLS)

    assert same_calls(reply.calls, [ToolCall("find", {"text": "x"})])
    assert reply.reasoning is not None
    assert reply.reasoning.startswith("shall I")
    assert reply == read_in_pieces(ReplyReader(form_named(form), TOOLS), list(text))


@every_form
def test_the_form_of_a_template_is_found_by_rendering_a_call(form):
    template = compiled(CHAT.replace("@", WRITTEN[form]))

    def apply(messages, *, tools, prompt):
        return template.render(messages=messages, tools=tools, add_generation_prompt=prompt)

    found = find_form(apply, ["<|end|>"])

    assert (found.form, found.reason) == (form_named(form), "")


def test_a_stop_token_before_the_call_is_named():
    template = compiled(CHAT.replace("@", "<|end|>" + WRITTEN["hermes"]))
    found = find_form(
        lambda messages, *, tools, prompt: template.render(messages=messages, add_generation_prompt=prompt), ["<|end|>"]
    )

    assert found.form == form_named("hermes")
    assert found.reason == "generation stops at <|end|>, which stands before the call"


def test_a_template_without_calls_has_no_form_and_says_why():
    plain = compiled(CHAT.replace("@", ""))
    strange = compiled(
        CHAT.replace("@", "{% for c in calls %}please {{ c.name }} with {{ c.arguments.city }}{% endfor %}")
    )

    def found(template):
        return find_form(
            lambda messages, *, tools, prompt: template.render(messages=messages, add_generation_prompt=prompt), []
        )

    assert (found(plain).form, found(plain).reason) == (None, "the template does not write tool calls")
    assert found(strange).form is None
    assert "no form reads this call: 'please get_weather with" in found(strange).reason


def test_how_a_template_takes_calls_is_found_too():
    """Arguments may have to be text (DeepSeek R1), and content none for the template to look for calls."""
    source = WRITTEN["deepseek_r1"].replace("a | tojson", "'' + a")
    template = compiled(CHAT.replace("m.tool_calls %}", "m.tool_calls and m.content is none %}").replace("@", source))

    def apply(messages, *, tools, prompt):
        try:
            return template.render(messages=messages, add_generation_prompt=prompt)
        except TypeError as error:
            raise ValueError(str(error)) from error

    found = find_form(apply, ["<|end|>"])
    call = {"role": "assistant", "content": "", "tool_calls": [ToolCall("find", {"text": "é"}).as_message_part()]}

    assert found.form == form_named("deepseek_r1")
    assert found.input.adapt(call)["content"] is None
    assert found.input.adapt(call)["tool_calls"][0]["function"]["arguments"] == '{"text": "é"}'
    assert found.input.adapt({"role": "user", "content": ""}) == {"role": "user", "content": ""}


def test_a_closing_tag_inside_a_text_ends_nothing():
    for form in ("hermes", "qwen3_coder", "glm", "minimax_m2"):
        calls = [ToolCall("find", {"text": "a </tool_call> </parameter> </arg_value> {b", "count": 2})]
        assert same_calls(read_reply(write(form, calls), form_named(form), tools=TOOLS).calls, calls), form


def test_text_around_calls_is_kept():
    call = '<tool_call>{"name": "find", "arguments": {}}</tool_call>'
    reply = read_reply(f"Before.\n{call}\nBetween <tool_call> words\n{call} after", form_named("hermes"))

    assert reply == Reply("Before.\nBetween <tool_call> words\nafter", None, (ToolCall("find"), ToolCall("find")))


def test_one_bad_call_does_not_hide_the_next():
    reply = read_reply(
        '<tool_call>{"name": }</tool_call><tool_call>{"name": "find", "arguments": {}}</tool_call>',
        form_named("hermes"),
    )

    assert reply == Reply('<tool_call>{"name": }</tool_call>', None, (ToolCall("find"),))


@pytest.mark.parametrize("bad", ["[" * 100_000, "{" * 100_000, '{"name": NaN}', '{"name": 1e999999', "\ud800"])
def test_deep_and_odd_json_is_content(bad):
    for form in ("hermes", "llama3", "pythonic", "gemma4"):
        assert read_reply(f"<tool_call>{bad}", form_named(form)).calls == ()
        assert read_reply(bad, form_named(form)).calls == ()


def test_values_are_what_the_schema_says():
    """A number in a text stays text; without a schema it is what JSON makes of it; Python's spelling is read too."""
    text = "<function=find><parameter=text>12</parameter><parameter=sure>True</parameter></function>"

    assert read_reply(text, form_named("qwen3_coder"), tools=TOOLS).calls[0].arguments == {"text": "12", "sure": True}
    assert read_reply(text, form_named("qwen3_coder")).calls[0].arguments == {"text": 12, "sure": True}


def test_reasoning_is_split_off():
    assert split_reasoning("<think>\nwhy\n</think>\n\nso") == ("why", "so")
    assert split_reasoning("why</think>so", prompt="<|assistant|><think>\n") == ("why", "so")
    assert split_reasoning("<think></think>so") == (None, "so")
    assert split_reasoning("so <think> it is") == (None, "so <think> it is")
    assert split_reasoning("<think>cut o") == ("cut o", "")
    assert split_reasoning("[THINK]why[/THINK]so") == ("why", "so")


def test_control_tokens_are_no_content():
    text = '<think>a<|end|></think>b<|end|><|python_tag|>{"name": "find", "arguments": {}}<|end|>'
    reader = ReplyReader(form_named("llama3"), control=["<|end|>", "<|python_tag|>"])

    assert read_in_pieces(reader, list(text)) == Reply("b", "a", (ToolCall("find"),))


def test_deltas_are_what_clients_of_openai_expect():
    delta = CallDelta(1, ToolCall("find", {"text": "é"}, "call_1"))

    assert delta.as_openai() == [
        {"index": 1, "type": "function", "id": "call_1", "function": {"name": "find", "arguments": ""}},
        {"index": 1, "function": {"arguments": '{"text": "é"}'}},
    ]


def test_arguments_are_values_however_they_are_given():
    given_as = [{"name": "f", "arguments": arguments} for arguments in ('{"a": 1}', {"a": 1})]
    messages = [Message("assistant", "", tool_calls=({"id": "1", "function": each},)) for each in given_as]

    assert messages[0] == messages[1]
    assert messages[0].tool_calls[0] == {
        "type": "function",
        "function": {"name": "f", "arguments": {"a": 1}},
        "id": "1",
    }
    for bad in ('{"a"', "[1]", 3):
        with pytest.raises(ValueError, match=r"arguments|delimiter"):
            normal_tool_call({"function": {"name": "f", "arguments": bad}})


def test_calls_are_scored_by_name_and_arguments():
    calls = ({"function": {"name": "f", "arguments": {"a": 1, "b": "x"}}}, {"function": {"name": "g", "arguments": {}}})
    asked = Conversation((Message("user", "?"), Message("assistant", "", tool_calls=calls)))
    plain = Conversation((Message("user", "?"), Message("assistant", "yes")))
    right = '{"name": "f", "arguments": {"b": "x", "a": 1}}'
    both = right + '\n{"name": "g", "arguments": {}}'
    score = SCORERS.parse("tool_call_match").score

    assert score(asked, "I look.\n" + both).value == 1
    assert score(asked, right)[:2] == (pytest.approx(2 / 3), 'missing: {"arguments": {}, "name": "g"}')
    assert score(asked, "f(a=1)").value == 0
    assert score(plain, "no").value == 1
    assert score(plain, right).value == 0
    ordered = SCORERS.parse({"type": "tool_call_match", "ordered": True}).score
    assert ordered(asked, "\n".join(reversed(both.splitlines()))).value == 0
    assert ordered(asked, both).value == 1
