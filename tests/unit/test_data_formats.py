"""What each format makes of a row, and what it says of a row that is wrong."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.core.errors import DataError
from tunesmith.data.conversation import Conversation, Message, Origin, Record, RowError
from tunesmith.data.formats import FORMATS
from tunesmith.data.formats._detect import detect_format
from tunesmith.data.read import read_sources
from tunesmith.data.source import Source

HERE = Origin("rows.jsonl", 7)
USER, ASSISTANT = Message("user", "上联"), Message("assistant", "下联")
CALL = {"type": "function", "function": {"name": "rhymes", "arguments": {"of": "东"}}}


def read(format_, **values) -> Conversation:
    return FORMATS.parse(format_).read(Record(values, HERE))


def error(format_, **values) -> str:
    with pytest.raises(RowError) as caught:
        read(format_, **values)
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS.names())
def test_format_describes_its_columns(name):
    format_ = FORMATS.get(name)

    assert format_.required
    assert format_.required <= format_.columns.keys()
    assert all(format_.columns.values())


@pytest.mark.parametrize("name", FORMATS.names())
def test_format_names_the_column_that_a_row_lacks(name):
    message = error(name, other=1)

    assert message.split(":")[0] in FORMATS.get(name).required
    assert "is missing; the row has other" in message


@pytest.mark.parametrize("name", FORMATS.names())
def test_format_refuses_a_number_where_text_belongs(name):
    message = error(name, **dict.fromkeys(FORMATS.get(name).required, 42))

    assert "found the number 42; must be" in message


# --- alpaca


def test_alpaca_joins_instruction_and_input_by_a_line_break():
    conversation = read("alpaca", instruction="对下联", input="上联", output="下联")

    assert conversation.messages == (Message("user", "对下联\n上联"), ASSISTANT)
    assert conversation.origin == HERE


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": None}, {"system": ""}, {"history": []}])
def test_alpaca_needs_no_input_system_or_history(empty):
    assert read("alpaca", instruction="上联", output="下联", **empty).messages == (USER, ASSISTANT)


def test_alpaca_takes_the_question_from_input_alone():
    assert read("alpaca", instruction="", input="上联", output="下联").messages == (USER, ASSISTANT)


def test_alpaca_puts_system_and_history_first():
    conversation = read("alpaca", instruction="上联", output="下联", system="诗人", history=[["问", "答"]])

    earlier = (Message("system", "诗人"), Message("user", "问"), Message("assistant", "答"))
    assert conversation.messages == (*earlier, USER, ASSISTANT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": " "}, "output: is empty; there must be text"),
        ({"output": None}, "output: found null; must be text"),
        ({"instruction": "\n"}, "instruction: is empty, and so is input; one of them must hold the question"),
        ({"input": ["上联"]}, "input: found a list of 1; must be text"),
        ({"history": "问"}, 'history: found the text "问"; must be a list of [question, answer] pairs'),
        ({"history": [["问"]]}, "history[0]: found a list of 1; must be a [question, answer] pair"),
        ({"history": [["问", ""]]}, "history[0][1]: is empty; there must be text"),
    ],
)
def test_alpaca_says_what_is_wrong(row, message):
    assert error("alpaca", **{"instruction": "上联", "output": "下联"} | row) == message


def test_long_values_are_shortened():
    message = error("alpaca", instruction="上联", output="下联", history="问" * 1000)

    assert f'"{"问" * 60}…"' in message
    assert len(message) < 150


def test_half_an_emoji_is_refused():
    assert (
        error("alpaca", instruction="上联", output="下联\ud83d") == r"output: character 3 is half a character (\ud83d)"
    )


# --- openai


def test_openai_reads_roles_and_text_parts():
    parts = [{"type": "text", "text": "上"}, {"type": "text", "text": "联"}]
    conversation = read(
        "openai",
        messages=[
            {"role": "developer", "content": "诗人"},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "下联"},
        ],
    )

    assert conversation.messages == (Message("system", "诗人"), replace(USER, parts=("上", "联")), ASSISTANT)


@pytest.mark.parametrize("arguments", [{"of": "东"}, '{"of": "东"}'])
@pytest.mark.parametrize("wrapped", [True, False])
def test_openai_reads_tool_calls_their_results_and_tools(arguments, wrapped):
    call = {"name": "rhymes", "arguments": arguments}
    tool = {"name": "rhymes", "parameters": {"type": "object"}}
    conversation = read(
        "openai",
        messages=[
            {"role": "user", "content": "上联"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": call, "id": "c1"} if wrapped else call]},
            {"role": "tool", "name": "rhymes", "tool_call_id": "c1", "content": ""},
            {"role": "assistant", "content": "下联"},
        ],
        tools=[{"type": "function", "function": tool} if wrapped else tool],
    )

    calling = Message("assistant", "", tool_calls=(CALL | {"id": "c1"} if wrapped else CALL,))
    assert conversation.messages == (USER, calling, Message("tool", "", name="rhymes", tool_call_id="c1"), ASSISTANT)
    assert conversation.tools == ({"type": "function", "function": tool},)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("rhymes", 'tools: found the text "rhymes", which is not JSON: Expecting value: line 1 column 1 (char 0)'),
        ({}, "tools: found an empty object; must be a list of tools"),
        ([{"parameters": {}}], "tools[0]: found an object with parameters; must be an object with name and parameters"),
    ],
)
def test_tools_that_are_wrong_are_told(tools, message):
    assert error("alpaca", instruction="上联", output="下联", tools=tools) == message


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_a_row_may_have_no_tools(tools):
    assert read("alpaca", instruction="上联", output="下联", tools=tools).tools == ()


@pytest.mark.parametrize(("arguments", "expected"), [(None, {}), ("", {}), ("{}", {}), ({"of": None}, {"of": None})])
def test_a_call_may_have_no_arguments(arguments, expected):
    turns = [ASK, {"role": "assistant", "tool_calls": [{"name": "rhymes", "arguments": arguments}]}]

    (call,) = read("openai", messages=turns).messages[1].tool_calls
    assert call["function"]["arguments"] == expected


def test_tools_may_be_json_text():
    conversation = read("prompt_completion", prompt="上联", completion="下联", tools='[{"name": "rhymes"}]')

    assert conversation.tools == ({"type": "function", "function": {"name": "rhymes"}},)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_openai_reads_reasoning(key):
    turns = [{"role": "user", "content": "上联"}, {"role": "assistant", "content": "下联", key: "想"}]

    assert read("openai", messages=turns).messages[1].reasoning == "想"


@pytest.mark.parametrize(
    ("mark", "trained", "weight"),
    [
        ({"train": False}, False, 1.0),
        ({"train": True}, True, 1.0),
        ({"weight": 0}, False, 1.0),
        ({"weight": 1}, None, 1.0),
        ({"weight": 0.5}, None, 0.5),
        ({"train": True, "weight": 2}, True, 2.0),
        ({"train": False, "weight": 2}, False, 1.0),
    ],
)
def test_openai_reads_which_turns_are_learnt_and_how_much(mark, trained, weight):
    turns = [
        {"role": "user", "content": "上联"},
        {"role": "assistant", "content": "错", **mark},
        {"role": "assistant", "content": "下联"},
    ]

    messages = read("openai", messages=turns).messages

    assert [message.trained for message in messages] == [None, trained, None]
    assert [message.weight for message in messages] == [1.0, weight, 1.0]


@pytest.mark.parametrize("mark", [{"train": True}, {"weight": 1}])
def test_a_turn_that_is_not_the_assistants_is_learnt_on_request(mark):
    assert read("openai", messages=[ASK | mark, ANSWER]).messages[0].trained is True


def test_the_parts_of_a_content_are_kept_beside_the_whole():
    parts = [{"type": "text", "text": "上"}, {"type": "text", "text": "联"}]
    messages = read("openai", messages=[{"role": "user", "content": parts}, ANSWER]).messages

    assert (messages[0].content, messages[0].parts) == ("上联", ("上", "联"))
    assert messages[1].parts == ()


def test_a_system_column_is_the_system_prompt():
    turns = [{"role": "user", "content": "上联"}, {"role": "assistant", "content": "下联"}]

    assert read("openai", messages=turns, system="诗人").messages[0] == Message("system", "诗人")


ASK = {"role": "user", "content": "上联"}
ANSWER = {"role": "assistant", "content": "下联"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: found a list of 0; must be a list of messages, each with role and content"),
        ("[]", 'messages: found the text "[]"; must be a list of messages, each with role and content'),
        ([ASK, "下联"], 'messages[1]: found the text "下联"; must be an object with role and content'),
        ([ASK], "messages: has no assistant turn; there must be at least one answer to learn"),
        ([ANSWER], "messages[0]: is an assistant turn; there must be something before it that it answers"),
        (
            [ASK, ANSWER | {"train": False}],
            "messages: every assistant turn is marked as not trained; there must be one to learn",
        ),
        (
            [ASK, {"role": "system", "content": "x"}],
            "messages[1]: is a system message; only the first message can be one",
        ),
        (
            [ASK, ANSWER | {"role": "asistant"}],
            'messages[1].role: found the text "asistant"; must be one of system, developer, user, assistant, tool, '
            "function (did you mean 'assistant'?)",
        ),
        ([ASK, {"role": "assistant"}], "messages[1].content: found null; must be text"),
        ([ASK, ANSWER | {"content": ""}], "messages[1].content: is empty; there must be text"),
        (
            [ASK | {"content": [{"type": "image_url"}]}, ANSWER],
            "messages[0].content[0]: found type 'image_url'; this version reads text only: "
            '{"type": "text", "text": "…"}',
        ),
        (
            [ASK, ANSWER | {"weight": -0.5}],
            "messages[1].weight: found the number -0.5; must be a number from 0 on, such as 0, 0.5 or 1",
        ),
        (
            [ASK, ANSWER | {"weight": True}],
            "messages[1].weight: found true; must be a number from 0 on, such as 0, 0.5 or 1",
        ),
        ([ASK, ANSWER | {"train": 0}], "messages[1].train: found the number 0; must be true or false"),
        (
            [ASK | {"tool_calls": [CALL]}, ANSWER],
            "messages[0].tool_calls: found in a user message; only the assistant calls tools",
        ),
        (
            [ASK, ANSWER | {"tool_calls": [{"name": "rhymes"}]}],
            "messages[1].tool_calls[0]: found an object with name; must be an object with name and arguments",
        ),
        (
            [ASK, ANSWER | {"tool_calls": [{"name": "rhymes", "arguments": [1]}]}],
            "messages[1].tool_calls[0].arguments: found a list of 1; must be an object",
        ),
        (
            [ASK, ANSWER | {"tool_calls": [{"name": "rhymes", "arguments": "{"}]}],
            'messages[1].tool_calls[0].arguments: found the text "{", which is not JSON: '
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            [{"from": "human", "value": "上联"}],
            "messages[0].role: is missing; the turn has from, value; "
            "it is sharegpt's: set format: sharegpt and columns: {conversations: messages}",
        ),
    ],
)
def test_openai_says_what_is_wrong(messages, message):
    assert error("openai", messages=messages) == message


def test_two_different_system_prompts_are_refused():
    message = error("openai", messages=[{"role": "system", "content": "甲"}, ASK, ANSWER], system="乙")

    assert message == 'system: found "乙", but messages begins with another system message; keep one'


def test_two_users_in_a_row_and_a_result_without_a_call_are_fine():
    turns = [ASK, ASK, {"role": "tool", "content": "东"}, ANSWER]

    assert len(read("openai", messages=turns).messages) == 4


# --- sharegpt


@pytest.mark.parametrize("asks", ["human", "user"])
@pytest.mark.parametrize("answers", ["gpt", "assistant", "model"])
def test_sharegpt_reads_the_usual_tags(asks, answers):
    turns = [{"from": "system", "value": "诗人"}, {"from": asks, "value": "上联"}, {"from": answers, "value": "下联"}]

    assert read("sharegpt", conversations=turns).messages == (Message("system", "诗人"), USER, ASSISTANT)


def test_sharegpt_reads_tags_of_its_own():
    format_ = {"type": "sharegpt", "role_tag": "who", "content_tag": "what", "user_tag": "客", "assistant_tag": "主"}
    turns = [{"who": "客", "what": "上联"}, {"who": "主", "what": "下联"}]

    assert read(format_, conversations=turns).messages == (USER, ASSISTANT)


def test_sharegpt_joins_a_function_call_to_the_turn_before_it():
    turns = [
        {"from": "human", "value": "上联"},
        {"from": "gpt", "value": "我查查"},
        {"from": "function_call", "value": '{"name": "rhymes", "arguments": {"of": "东"}}'},
        {"from": "observation", "value": "[]"},
        {"from": "function_call", "value": '<think>再查</think>\n[{"name": "rhymes", "arguments": {"of": "东"}}]'},
        {"from": "tool", "value": "同"},
        {"from": "gpt", "value": "下联"},
    ]

    expected = (
        USER,
        Message("assistant", "我查查", tool_calls=(CALL,)),
        Message("tool", "[]"),
        Message("assistant", "", "再查", (CALL,)),
        Message("tool", "同"),
        ASSISTANT,
    )
    assert read("sharegpt", conversations=turns).messages == expected


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (
            [{"from": "humam", "value": "上联"}],
            'conversations[0].from: found the text "humam"; must be one of human, user, gpt, assistant, model, system, '
            "observation, tool, function_call (did you mean 'human'?)",
        ),
        ([{"from": "human"}], "conversations[0].value: is missing; the turn has from"),
        (
            [{"role": "user", "content": "上联"}],
            "conversations[0].from: is missing; the turn has role, content; "
            "it is openai's: set format: openai and columns: {messages: conversations}",
        ),
        (
            [{"from": "human", "value": "上联"}],
            "conversations: has no assistant turn; there must be at least one answer to learn",
        ),
        ([{"from": "human", "value": ""}], "conversations[0].value: is empty; there must be text"),
        (
            [{"from": "human", "value": "上联"}, {"from": "function_call", "value": "rhymes(东)"}],
            'conversations[1].value: found the text "rhymes(东)", which is not JSON: '
            "Expecting value: line 1 column 1 (char 0)",
        ),
    ],
)
def test_sharegpt_says_what_is_wrong(turns, message):
    assert error("sharegpt", conversations=turns) == message


# --- prompt_completion and text


def test_prompt_and_completion_may_be_texts_or_messages():
    expected = (USER, ASSISTANT)

    assert read("prompt_completion", prompt="上联", completion="下联").messages == expected
    assert read("prompt_completion", prompt=[ASK], completion=[ANSWER]).messages == expected
    assert read("prompt_completion", prompt=[ASK], completion="下联").messages == expected


def test_answers_inside_a_prompt_are_not_learnt():
    conversation = read("prompt_completion", prompt=[ASK, ANSWER, ASK], completion=[ANSWER])

    assert [message.trained for message in conversation.messages] == [None, False, None, None]


def test_a_question_inside_a_completion_is_refused():
    message = error("prompt_completion", prompt=[ASK], completion=[ANSWER, ASK])

    assert message == "completion[1]: is a user message; it belongs in the prompt"


def test_text_is_a_conversation_without_messages():
    assert read("text", text="春眠不觉晓") == Conversation(text="春眠不觉晓")


# --- detection


@pytest.mark.parametrize("name", FORMATS.names())
def test_required_columns_are_enough_to_detect_a_format(name):
    columns = [column for column in FORMATS.get(name).columns if column in FORMATS.get(name).required]
    format_, why = detect_format([{"broken": 1}, dict.fromkeys(columns)])

    assert format_.type_name() == name
    assert why == f"detected from columns {', '.join(columns)}"


def test_columns_of_two_formats_are_not_guessed_at():
    with pytest.raises(DataError) as caught:
        detect_format([{"instruction": "", "output": "", "text": ""}])

    assert (
        str(caught.value)
        == "found columns instruction, output, text, which more than one format reads; set format: alpaca or text"
    )


def test_unknown_columns_are_told_with_what_each_format_wants():
    with pytest.raises(DataError) as caught:
        detect_format([{"question": "", "answer": ""}])

    lines = str(caught.value).split("\n")
    assert lines[0] == "found columns question, answer, which no format reads"
    assert "    text wants text" in lines
    assert "    openai wants messages (and may have system, tools, chosen, rejected, label, label_weight)" in lines
    assert lines[-1] == "    hint: say which column is which, such as columns: {prompt: question, completion: answer}"


@pytest.mark.parametrize(("turn", "ours"), [({"role": "user"}, "messages"), ({"from": "human"}, "conversations")])
def test_turns_in_an_odd_column_are_recognised(turn, ours):
    with pytest.raises(DataError, match=f"hint: set columns: {{{ours}: dialogue}}"):
        detect_format([{"dialogue": [turn]}])


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "", "chosen": "", "rejected": ""}, "preference"),
        ({"chosen": [], "rejected": []}, "preference"),
        ({"prompt": "", "completion": "", "label": True}, "prompt_completion"),
        ({"instruction": "", "input": "", "chosen": "", "rejected": ""}, "alpaca"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "sharegpt"),
        ({"messages": [], "chosen": {}, "rejected": {}}, "openai"),
        ({"messages": [], "label": False}, "openai"),
    ],
)
def test_preference_data_is_recognised(row, name):
    assert detect_format([row])[0].type_name() == name


def test_pairs_in_odd_columns_are_recognised():
    hint = "hint: set columns: {prompt: query, chosen: chosen_text, rejected: Rejected}"
    with pytest.raises(DataError, match=re.escape(hint)):
        detect_format([{"query": "", "chosen_text": "", "Rejected": ""}])


def test_pictures_are_not_dropped_in_silence():
    with pytest.raises(
        DataError, match="found columns images: this version reads text only\n    hint: to learn the text"
    ):
        detect_format([{"messages": [], "images": ["a.png"]}])


def test_a_template_sees_everything_that_a_message_says():
    result = Message("tool", "东", name="rhymes", tool_call_id="c1")
    calling = Message("assistant", "", "想", (CALL,))

    assert result.as_template_input() == {"role": "tool", "content": "东", "name": "rhymes", "tool_call_id": "c1"}
    assert calling.as_template_input() == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "想",
        "tool_calls": [CALL],
    }


def test_text_may_be_a_list_of_lines(tmp_path: Path) -> None:
    """Poems often come as lists of lines; they are joined, and a line that is no text is named."""
    file = tmp_path / "poems.jsonl"
    file.write_text('{"lines": ["春眠不觉晓", "处处闻啼鸟"]}\n{"lines": ["夜来风雨声", 5]}\n', encoding="utf-8")
    source = Source(path=str(file), format="text", columns={"text": "lines"})

    read = read_sources([source], bad_rows="skip")

    assert [c.text for c in read.conversations] == ["春眠不觉晓\n处处闻啼鸟"]
    assert [str(row) for row in read.bad] == [f"{file}:2: lines (as text[1]): found the number 5; must be text"]
