"""Pairs and liked or disliked answers, as LLaMA-Factory, TRL and plain files write them."""

import json

import pytest

from tunesmith.core.errors import DataError
from tunesmith.data.conversation import BadRow, Conversation, Message, Record, RowError
from tunesmith.data.conversation import Origin as Place
from tunesmith.data.formats import FORMATS
from tunesmith.data.read import count_shared, read_sources
from tunesmith.data.source import Source

QUESTION, GOOD, BAD = "上联：春风", "下联：秋月", "下联：春雨"
CALL = {"name": "rhyme", "arguments": {"of": "东"}}


def read(name: str, **values) -> Conversation:
    return FORMATS.get(name)().read(Record(values, Place("rows.jsonl", 3)))


def turns(*contents: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn, the user first."""
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]


def said(messages) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


USER, ANSWER, OTHER = ("user", QUESTION), ("assistant", GOOD), ("assistant", BAD)
ANSWERED, ANSWERED_BADLY = turns(QUESTION, GOOD)[1:], turns(QUESTION, BAD)[1:]
LLAMAFACTORY = [{"from": "human", "value": QUESTION}]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("preference", {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}),
        ("preference", {"prompt": turns(QUESTION), "chosen": GOOD, "rejected": BAD}),
        ("preference", {"prompt": turns(QUESTION), "chosen": ANSWERED, "rejected": ANSWERED_BADLY}),
        ("preference", {"chosen": turns(QUESTION, GOOD), "rejected": turns(QUESTION, BAD)}),
        # some files repeat the prompt as text beside whole dialogues
        ("preference", {"prompt": "春风", "chosen": turns(QUESTION, GOOD), "rejected": turns(QUESTION, BAD)}),
        ("alpaca", {"instruction": QUESTION, "input": "", "chosen": GOOD, "rejected": BAD}),
        (
            "sharegpt",
            {
                "conversations": LLAMAFACTORY,
                "chosen": {"from": "gpt", "value": GOOD},
                "rejected": {"from": "gpt", "value": BAD},
            },
        ),
        ("openai", {"messages": turns(QUESTION), "chosen": ANSWERED[0], "rejected": ANSWERED_BADLY[0]}),
        # as UltraFeedback has it, which repeats the chosen dialogue
        (
            "openai",
            {
                "prompt": QUESTION,
                "messages": turns(QUESTION, GOOD),
                "chosen": turns(QUESTION, GOOD),
                "rejected": turns(QUESTION, BAD),
            },
        ),
    ],
    ids=["text", "mixed", "messages", "implicit", "repeated", "alpaca", "sharegpt", "openai", "ultrafeedback"],
)
def test_every_way_of_writing_a_pair_is_the_same_pair(name, row):
    """The dialogue ends with the chosen answer; the rejected one follows the same prompt."""
    pair = read(name, **row)

    assert said(pair.messages) == [USER, ANSWER]
    assert (pair.shared, said(pair.chosen), said(pair.rejected)) == (1, [ANSWER], [OTHER])
    assert said(pair.ending_rejected().messages) == [USER, OTHER]
    assert not pair.ending_rejected().rejected


def test_answers_in_a_pairs_prompt_are_context():
    """Of a dialogue only the two endings are learnt; the implicit prompt is what both begin with."""
    pair = read(
        "preference", chosen=turns("一", "二", QUESTION, GOOD, "三", "四"), rejected=turns("一", "二", QUESTION, BAD)
    )

    assert said(pair.messages[:3]) == [("user", "一"), ("assistant", "二"), USER]
    assert [message.trained for message in pair.messages] == [None, False, None, None, None, None]
    assert said(pair.chosen) == [ANSWER, ("user", "三"), ("assistant", "四")]


def test_a_rows_system_prompt_and_tools_belong_to_both_endings():
    pair = read("alpaca", instruction=QUESTION, chosen=GOOD, rejected=BAD, system="诗人", tools=[CALL | {"name": "a"}])

    assert said(pair.messages) == [("system", "诗人"), USER, ANSWER]
    assert pair.shared == 2
    assert said(pair.ending_rejected().messages) == [("system", "诗人"), USER, OTHER]
    assert len(pair.ending_rejected().tools) == 1


def test_an_ending_may_call_tools():
    """A chosen ending of call, result and answer stands against a plain one."""
    chosen = [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "同"},
        {"role": "assistant", "content": GOOD},
    ]
    pair = read("preference", prompt=turns(QUESTION), chosen=chosen, rejected=BAD)
    factory = read(
        "sharegpt",
        conversations=LLAMAFACTORY,
        chosen={"from": "function_call", "value": json.dumps(CALL)},
        rejected={"from": "gpt", "value": BAD},
    )

    assert [message.role for message in pair.chosen] == ["assistant", "tool", "assistant"]
    assert pair.chosen[0].tool_calls[0]["function"]["name"] == "rhyme"
    assert factory.chosen[0].tool_calls[0]["function"]["arguments"] == {"of": "东"}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("prompt_completion", {"prompt": QUESTION, "completion": GOOD}),
        ("openai", {"messages": turns(QUESTION, GOOD)}),
        ("alpaca", {"instruction": QUESTION, "output": GOOD}),
        ("sharegpt", {"conversations": [*LLAMAFACTORY, {"from": "gpt", "value": GOOD}]}),
    ],
)
def test_an_answer_may_be_liked_or_not(name, row):
    liked, disliked = read(name, **row, label=True), read(name, **row, label=False, label_weight=0.5)

    assert (liked.label, liked.label_weight) == (True, 1.0)
    assert (disliked.label, disliked.label_weight) == (False, 0.5)
    assert read(name, **row).label is None


def test_of_a_dialogue_that_was_judged_the_last_answer_counts():
    """What the assistant said before the last question is context; a call and what follows it is one answer."""
    call = [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "同"}]
    judged = read("openai", messages=[*turns("一", "二", QUESTION), *call, *ANSWERED], label=True)

    assert [m.trained for m in judged.messages if m.role == "assistant"] == [False, None, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": QUESTION, "chosen": GOOD}, "rejected: is missing; the row has prompt, chosen"),
        ({"prompt": QUESTION, "chosen": GOOD, "rejected": GOOD}, "rejected: is the same as chosen"),
        ({"prompt": QUESTION, "chosen": GOOD, "rejected": ""}, "rejected: is empty; there must be text"),
        ({"prompt": QUESTION, "chosen": 3, "rejected": BAD}, "chosen: found the number 3; must be a list of messages"),
        ({"chosen": GOOD, "rejected": BAD}, "prompt: is missing; without it, chosen and rejected must be whole"),
        (
            {"chosen": turns("一", GOOD), "rejected": turns("二", BAD)},
            "chosen: begins with a user message; both must answer the same prompt",
        ),
        (
            {"chosen": turns(QUESTION, GOOD), "rejected": turns(QUESTION)},
            "rejected: says nothing after what both begin with",
        ),
        (
            {"prompt": QUESTION, "chosen": [{"role": "tool", "content": "同"}], "rejected": BAD},
            "chosen: begins with a tool message",
        ),
    ],
)
def test_a_row_that_is_no_pair_says_why(row, message):
    with pytest.raises(RowError) as caught:
        read("preference", **row)

    assert str(caught.value).startswith(message)


def test_half_a_pair_beside_an_answer_is_refused():
    with pytest.raises(RowError, match=r"^rejected: is missing, but there is chosen; a pair has both$"):
        read("alpaca", instruction=QUESTION, output=GOOD, chosen=GOOD)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label": 3},
            "label: found the number 3; must be true or false. leave the column out with columns: {label: n",
        ),
        ({"label": True, "label_weight": 0}, "label_weight: found the number 0; must be a number above 0"),
    ],
)
def test_a_label_that_is_none_says_why(columns, message):
    with pytest.raises(RowError) as caught:
        read("openai", messages=turns(QUESTION, GOOD), **columns)

    assert str(caught.value).startswith(message)


def test_bad_pairs_are_named_with_file_and_line(tmp_path):
    rows = [
        {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
        {"prompt": QUESTION, "chosen": GOOD, "rejected": GOOD},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    with pytest.raises(DataError, match=r"pairs\.jsonl:2: rejected: is the same as chosen"):
        read_sources([Source(path=str(file))], bad_rows="refuse")
    (bad,) = read_sources([Source(path=str(file))], bad_rows="skip").bad
    assert isinstance(bad, BadRow)


def test_pairs_that_differ_in_what_is_rejected_are_no_duplicates(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": QUESTION, "chosen": GOOD, "rejected": bad} for bad in (BAD, "三", BAD)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = read_sources([Source(path=str(file))], bad_rows="refuse")

    assert data.duplicates == 1
    assert count_shared(data.conversations[1:2], data.conversations[:1]) == 0


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        (
            {"columns": {"prompt": "q", "query": "i", "chosen": "good", "rejected": "bad"}},
            {"q": "上联：", "i": "春风", "good": GOOD, "bad": BAD, "output": "不读"},
        ),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "messages", "chosen": "good", "rejected": "bad"},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "content",
                    "user_tag": "user",
                    "assistant_tag": "assistant",
                },
            },
            {"messages": turns(QUESTION), "good": ANSWERED[0], "bad": ANSWERED_BADLY[0]},
        ),
    ],
    ids=["alpaca", "sharegpt"],
)
def test_ranking_data_of_llamafactory_are_pairs(tmp_path, entry, row):
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, **entry}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    (tmp_path / "pairs.json").write_text(json.dumps([row]), "utf-8")
    (pair,) = read_sources([Source(path=str(tmp_path), dataset="pairs")], bad_rows="refuse").conversations

    assert (pair.messages[-1].content, pair.rejected) == (GOOD, (Message("assistant", BAD),))


def test_kto_data_of_llamafactory_are_labelled(tmp_path):
    columns = {"prompt": "q", "response": "a", "kto_tag": "liked"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"k": {"file_name": "k.json", "columns": columns}}), "utf-8")
    (tmp_path / "k.json").write_text(json.dumps([{"q": QUESTION, "a": BAD, "liked": False}]), "utf-8")
    (row,) = read_sources([Source(path=str(tmp_path), dataset="k")], bad_rows="refuse").conversations

    assert (row.label, row.rejected) == (False, ())
