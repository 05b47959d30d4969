"""An entry of LLaMA-Factory's dataset_info.json means here what it means there, or is refused with a reason."""

import json

import pytest

from tunesmith.core.errors import DataError
from tunesmith.data.conversation import Message
from tunesmith.data.dataset_info import list_datasets, read_dataset
from tunesmith.data.read import read_sources
from tunesmith.data.source import Source, check_source

COUPLET = (Message("user", "上联"), Message("assistant", "下联"))


@pytest.fixture
def describe(tmp_path):
    """Write a dataset_info.json with one entry, ``poems``."""

    def write_entry(entry):
        path = tmp_path / "dataset_info.json"
        path.write_text(json.dumps({"poems": entry}, ensure_ascii=False), encoding="utf-8")
        return path

    return write_entry


def error(path, name="poems") -> str:
    with pytest.raises(DataError) as caught:
        read_dataset(path, name)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("entry", "row", "expected"),
    [
        ({}, {"instruction": "上", "input": "联", "output": "下联"}, (Message("user", "上\n联"), COUPLET[1])),
        ({}, {"instruction": "上联", "input": "", "output": "下联", "system": "别读", "history": "别读"}, COUPLET),
        (
            {"columns": {"prompt": "q", "response": "a"}},
            {"q": "上联", "a": "下联", "input": "别读", "instruction": "别读"},
            COUPLET,
        ),
        (
            {"columns": {"prompt": "q", "query": "i", "response": "a", "system": "s", "history": "h"}},
            {"q": "上", "i": "联", "a": "下联", "s": "诗人", "h": [["问", "答"]]},
            (
                Message("system", "诗人"),
                Message("user", "问"),
                Message("assistant", "答"),
                Message("user", "上\n联"),
                COUPLET[1],
            ),
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "turns"}},
            {"turns": [{"from": "human", "value": "上联"}, {"from": "gpt", "value": "下联"}], "system": "别读"},
            COUPLET,
        ),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "messages", "system": "s"},
                "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "客", "assistant_tag": "主"},
            },
            {"messages": [{"role": "客", "content": "上联"}, {"role": "主", "content": "下联"}], "s": "诗人"},
            (Message("system", "诗人"), *COUPLET),
        ),
        (
            {
                "formatting": "openai",
                "columns": {"messages": "messages"},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "content",
                    "user_tag": "user",
                    "assistant_tag": "assistant",
                },
            },
            {"messages": [{"role": "user", "content": "上联"}, {"role": "assistant", "content": "下联"}]},
            COUPLET,
        ),
    ],
)
def test_an_entry_reads_what_it_reads_in_llamafactory(describe, entry, row, expected):
    path = describe({"file_name": "rows.json", **entry})
    (path.parent / "rows.json").write_text(json.dumps([row]), encoding="utf-8")

    for place in (path, path.parent):
        source = Source(path=str(place), dataset="poems")
        assert list(check_source(source, "data.train.0")) == []
        data = read_sources([source], bad_rows="refuse")
        assert [conversation.messages for conversation in data.conversations] == [expected]
        assert data.sources[0].source == source
        assert data.sources[0].why.startswith(f"set in {path}")


def test_a_prompt_alone_is_text_to_continue(describe):
    path = describe({"file_name": "poems.txt", "columns": {"prompt": "text"}})
    (path.parent / "poems.txt").write_text("春眠不觉晓\n", encoding="utf-8")
    data = read_sources([Source(path=str(path), dataset="poems")], bad_rows="refuse")

    assert [conversation.text for conversation in data.conversations] == ["春眠不觉晓"]


def test_a_hub_entry_keeps_its_subset_split_and_folder(describe):
    path = describe(
        {
            "hf_hub_url": "poets/ci",
            "ms_hub_url": "x/y",
            "subset": "song",
            "split": "test",
            "folder": "a",
            "num_samples": 9,
        }
    )
    source = Source.model_validate(read_dataset(path, "poems"))

    expected = ("poets/ci", "song", "test", "a", 9)
    assert (source.path, source.subset, source.split, source.folder, source.take) == expected


def test_take_in_the_recipe_goes_before_num_samples(describe):
    path = describe({"file_name": "poems.txt", "columns": {"prompt": "text"}, "num_samples": 2})
    (path.parent / "poems.txt").write_text("一\n二\n三\n", encoding="utf-8")

    def read(**settings):
        return read_sources([Source(path=str(path), dataset="poems", **settings)], bad_rows="refuse")

    assert (read().rows, read(take=1).rows) == (2, 1)
    assert "first 2 rows (LLaMA-Factory draws them at random)" in read().sources[0].why


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ms_hub_url": "a/b"}, "is on ModelScope or Modelers, which are not read; download it and give its file_name"),
        ({"script_url": "a.py"}, "is loaded by a script (script_url), which is not run"),
        ({"cloud_file_name": "s3://a"}, "is in cloud storage (cloud_file_name), which is not read"),
        ({"hf_hub_url": "wiki_qa"}, "hf_hub_url: found 'wiki_qa'; the Hub names data sets owner/name"),
        ({}, "says neither file_name nor hf_hub_url"),
        (
            {"file_name": "a", "ranking": True},
            "ranking: true needs columns chosen and rejected, as LLaMA-Factory reads",
        ),
        (
            {
                "file_name": "a",
                "ranking": True,
                "columns": {"prompt": "q", "chosen": "c", "rejected": "r", "kto_tag": "l"},
            },
            "has ranking: true and kto_tag, which exclude each other",
        ),
        (
            {"file_name": "a", "formatting": "sharegpt", "columns": {"messages": "m", "images": "i", "audios": "a"}},
            "has the columns images, audios; this version reads text only",
        ),
        (
            {"file_name": "a", "columns": {"promt": "q"}},
            "columns.promt: no such key (did you mean 'prompt'?); have prompt",
        ),
        (
            {"file_name": "a", "tags": {"roletag": "q"}},
            "tags.roletag: no such key (did you mean 'role_tag'?); have role_",
        ),
        ({"file_name": "a", "formating": "sharegpt"}, "formating: no such key (did you mean 'formatting'?)"),
        ({"file_name": "a", "formatting": "chatml"}, "formatting: found the text \"chatml\"; input should be 'alpaca'"),
        (
            {"file_name": "a", "columns": {"response": "a"}},
            "columns: need prompt (and response), as LLaMA-Factory reads",
        ),
        (
            {"file_name": "a", "columns": {"prompt": "q", "query": "i"}},
            "columns: have prompt and query but no response",
        ),
        ({"file_name": "a", "formatting": "sharegpt", "columns": {"system": "s"}}, "columns: need messages, as"),
        (
            {"file_name": "a", "formatting": "openai", "columns": {"messages": "m"}, "tags": {"user_tag": "客"}},
            "tags: found user_tag: 客; in the openai formatting they are fixed, use formatting sharegpt for others",
        ),
        ("a.json", 'the entry: found the text "a.json"; input should be'),
    ],
)
def test_an_entry_that_cannot_be_read_says_why(describe, entry, message):
    assert error(describe(entry)).startswith(f"dataset_info.json: data set 'poems': {message}")


def test_all_that_is_wrong_with_an_entry_is_told_at_once(describe):
    message = error(describe({"script_url": "a.py", "ranking": True, "formating": "sharegpt"}))

    assert message.count("data set 'poems': ") == 3


def test_notes_of_the_users_own_are_left_alone(describe):
    assert read_dataset(describe({"file_name": "a.json", "license": "MIT"}), "poems")["format"] == "alpaca"


def test_an_unknown_data_set_is_told_with_those_there_are(describe):
    message = "dataset_info.json: no data set 'poem' (did you mean 'poems'?); have poems"

    assert error(describe({"file_name": "a.json"}), "poem") == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": {},\n}', "dataset_info.json:"),
        ("[]", "dataset_info.json: found a list of 0; must be an object: data set name -> description"),
        (b"\xff", "dataset_info.json: byte 0 is not UTF-8; the file must be UTF-8"),
    ],
)
def test_a_broken_dataset_info_is_explained(tmp_path, content, message):
    path = tmp_path / "dataset_info.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    assert error(path).startswith(message)
    assert list_datasets(path) == []


def test_a_folder_with_data_sets_asks_which_one(describe):
    path = describe({"file_name": "a.json"})

    (problem,) = check_source(Source(path=str(path.parent)), "data.train.0")
    assert problem.path == "data.train.0.dataset"
    assert problem.message == f"{path} describes data sets; set dataset to one of them, or path to a file: poems"


def test_a_dataset_info_of_the_datasets_library_is_not_ours(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"features": {"text": {}}, "splits": {}}', encoding="utf-8")
    (tmp_path / "a.txt").write_text("春", encoding="utf-8")

    assert list(check_source(Source(path=str(tmp_path)), "data.train.0")) == []


def test_a_dataset_needs_a_dataset_info(tmp_path):
    (problem,) = check_source(Source(path=str(tmp_path), dataset="poems"), "data.train.0")

    assert problem.path == "data.train.0.dataset"
    assert problem.message.endswith(f"found no {tmp_path}/dataset_info.json")
