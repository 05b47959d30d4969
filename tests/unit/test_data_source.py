"""A source is checked from its beginning, settled once, and read with every row accounted for."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from tunesmith.core.errors import DataError, Problem, RecipeError
from tunesmith.data.conversation import Message, Origin
from tunesmith.data.read import FileRead, read_sources
from tunesmith.data.source import Source, check_source

ROW = {"question": "上联", "answer": "下联", "author": "李白"}
COLUMNS = {"prompt": "question", "completion": "answer"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file of rows (or of text) below the current folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, content: list | str) -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        Path(name).write_text(text, encoding="utf-8")
        return name

    return write_file


def check(**settings) -> list[Problem]:
    return list(check_source(Source(**settings), "data.train.0", "recipe.yaml:3"))


def read(*sources, bad_rows="refuse"):
    return read_sources([Source.model_validate(source) for source in sources], bad_rows=bad_rows, at="data.train")


def answer(text: str) -> dict:
    return {"prompt": "上联", "completion": text}


# --- the block


class Holder(BaseModel):
    train: list[Source]


def test_a_path_alone_is_a_source():
    assert Holder(train=["a.jsonl", Path("b.csv")]).train == [Source(path="a.jsonl"), Source(path="b.csv")]


@pytest.mark.parametrize("format_", ["auto", "alpaca", {"type": "sharegpt", "user_tag": "客"}])
def test_a_source_reads_back_as_it_was_written(format_):
    source = Source(path="a.jsonl", format=format_, columns={"input": None}, take=3)

    assert Source.model_validate(source.model_dump()) == source
    assert Source.model_validate_json(source.model_dump_json()) == source


def test_every_setting_is_described():
    assert all(field.description for field in Source.model_fields.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "alpca"}, "unknown format 'alpca' (did you mean 'alpaca'?); have alpaca, labelled"),
        ({"take": 0}, "greater than or equal to 1"),
        ({"dataset": "poems", "format": "alpaca"}, "dataset_info.json says format for dataset 'poems'; remove"),
        (
            {"dataset": "poems", "split": "test", "columns": {"input": None}},
            "dataset_info.json says columns, split for",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValidationError) as caught:
        Source(path="a.jsonl", **settings)

    assert message in str(caught.value)


# --- the light check


def test_a_good_source_has_no_problems(write):
    assert check(path=write("a.jsonl", [ROW]), columns=COLUMNS) == []


def test_a_problem_says_where_what_and_what_would_be_right(write):
    write("train.jsonl", [ROW])

    message = "no such file or folder: trian.jsonl (did you mean 'train.jsonl'?)"
    assert check(path="trian.jsonl") == [Problem("data.train.0.path", message, "recipe.yaml:3")]


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        (
            {"columns": {"promt": "question"}},
            "columns.promt",
            "no such column (did you mean 'prompt'?); have instruction, input, output, history, system, tools",
        ),
        (
            {"columns": {"question": "prompt"}},
            "columns.question",
            "; it is written {our column: the file's column}",
        ),
        (
            {"columns": {"prompt": "qestion"}},
            "columns.prompt",
            "no column 'qestion' in the first rows (did you mean 'question'?); a.jsonl has question, answer, author",
        ),
        ({"format": "text", "columns": {"prompt": "question"}}, "columns.prompt", "no such column; have text"),
        ({}, "format", "found columns question, answer, author, which no format reads"),
        (
            {"format": "text"},
            "format",
            "none of the first 1 rows can be read:\n    a.jsonl:1: text: is missing; the row",
        ),
        ({"split": "test"}, "split", "is for Hub data sets; a.jsonl is a local path"),
        ({"subset": "en"}, "subset", "is for Hub data sets; a.jsonl is a local path"),
        ({"folder": "en"}, "folder", "is for Hub data sets; a.jsonl is a local path"),
        ({"dataset": "poems"}, "dataset", "a.jsonl: no data set 'poems'; have question, answer, author"),
    ],
)
def test_settings_that_do_not_fit_the_file_are_problems(write, settings, key, message):
    (problem,) = check(path=write("a.jsonl", json.dumps(ROW)), **settings)

    assert problem.path == f"data.train.0.{key}"
    assert message in problem.message


def test_all_problems_of_a_source_are_told_at_once(write):
    problems = check(path=write("a.jsonl", [ROW]), split="test", columns={"promt": "question", "completion": "anser"})

    keys = [problem.path.removeprefix("data.train.0.") for problem in problems]
    assert keys == ["split", "columns.promt", "columns.completion"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl: is empty"),
        ("a.csv", "prompt,completion\n", "a.csv: is empty"),
        ("a.json", "[]", "a.json: is empty"),
        ("a.json", '[{"prompt": 1,}]', "a.json:1: not JSON at column 15"),
        ("a.jsonl", "{'prompt': 'a'}", "none of the first 1 rows can be read:\n    a.jsonl:1: not JSON at column 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(write, name, content, message):
    (problem,) = check(path=write(name, content))

    assert problem.path == "data.train.0.path"
    assert problem.message.startswith(message)


def test_a_hint_is_apart_from_the_message(write):
    (problem,) = check(path=write("a.json", '{"rows": []}'))

    assert problem.message == "a.json: holds one object, with rows; must be a list of objects"
    assert problem.hint.startswith("put the rows in a list")


def test_a_bad_first_row_does_not_hide_good_ones(write):
    assert check(path=write("a.jsonl", [{"prompt": 1}, answer("下联")])) == []


def test_a_hub_name_is_not_looked_up(write):
    assert check(path="openai/gsm8k", subset="main", columns={"instruction": "question"}) == []


def test_a_slip_in_a_local_path_is_not_a_hub_name(write):
    write("data/train.jsonl", [ROW])

    (problem,) = check(path="data/trian")
    assert problem.message == "no such file or folder: data/trian"
    (problem,) = check(path="new/train.jsonl.gz")
    assert problem.message == "no such file or folder: new/train.jsonl.gz (. has no 'new')"
    (problem,) = check(path="data/train")
    assert problem.message == "no such file or folder: data/train (did you mean 'train.jsonl'?)"


def test_the_check_reads_the_beginning_only(write):
    """What follows the first rows is broken, in every kind of text file, and the check does not get there."""
    long = "长" * 3000
    for name, content in {
        "a.jsonl": f'{{"text": "{long}"}}\n' * 200,
        "a.json": "[" + f'{{"text": "{long}"}},\n' * 200,
        "a.csv": "text\n" + f"{long}\n" * 200,
        "a.txt": f"{long}\n" * 200,
    }.items():
        path = Path(write(name, content))
        with path.open("ab") as handle:
            handle.write(b"\n" * (2 << 20) + b"\xff")

        assert check(path=str(path)) == []


def test_the_check_imports_nothing_heavy(write):
    write("a.jsonl", [ROW])
    code = (
        "import sys; from tunesmith.data.source import *;"
        "assert not list(check_source(Source(path='a.jsonl', columns={'text': 'answer'}), ''));"
        "print(*{'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'numpy'} & sys.modules.keys())"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# --- reading


def test_rows_become_conversations_in_order_with_a_full_account(write):
    write("data/b.jsonl", [ROW, ROW])
    write("data/a.csv", "question,answer\n上联,\n上联,工\n")
    write("data/notes.md", "")
    data = read({"path": "data", "columns": COLUMNS}, write("c.txt", "春\n"), bad_rows="skip")

    couplet = (Message("user", "上联"), Message("assistant", "下联"))
    assert [conversation.messages[1:] for conversation in data.conversations[:3]] == [
        (Message("assistant", "工"),),
        couplet[1:],
        couplet[1:],
    ]
    assert data.conversations[3].text == "春"
    assert [conversation.origin for conversation in data.conversations] == [
        Origin("data/a.csv", 3),
        Origin("data/b.jsonl", 1),
        Origin("data/b.jsonl", 2),
        Origin("c.txt", 1),
    ]
    assert (data.rows, len(data.bad), data.duplicates) == (5, 1, 1)
    assert str(data.bad[0]) == "data/a.csv:2: answer (as completion): is empty; there must be text"
    folder, text = data.sources
    assert [(file.file, file.rows, file.bad) for file in folder.files] == [("data/a.csv", 2, 1), ("data/b.jsonl", 2, 0)]
    assert folder.left_out == ("data/notes.md",)
    assert text.files == (FileRead("c.txt", 1, 0, hashlib.sha256("春\n".encode()).hexdigest()),)
    assert (folder.format.type_name(), text.format.type_name()) == ("prompt_completion", "text")


def test_the_reason_for_a_format_names_the_columns_used_and_unused(write):
    path = write("a.jsonl", [ROW])

    (source,) = read({"path": path, "columns": COLUMNS}).sources
    assert source.why == "detected from columns prompt, completion; not used: author"
    (source,) = read({"path": path, "columns": {"text": "answer"}, "format": "text"}).sources
    assert source.why == "set in the recipe; not used: question, author"


def test_a_mapped_column_is_read_under_our_name_only(write):
    rows = [{"prompt": "别读", "completion": "下联", "q": "上联", "system": "别读", "notes": "诗人"}]
    columns = {"prompt": "q", "system": None}
    (conversation,) = read({"path": write("a.jsonl", rows), "columns": columns}).conversations

    assert conversation.messages == (Message("user", "上联"), Message("assistant", "下联"))


def test_bad_rows_are_refused_with_file_line_and_total(write):
    rows = [answer("下联")] + [answer("")] * 12
    with pytest.raises(DataError) as caught:
        read(write("a.jsonl", rows))

    lines = str(caught.value).split("\n")
    assert lines[0] == "12 of 13 rows cannot be read:"
    assert lines[1] == "    a.jsonl:2: completion: is empty; there must be text"
    assert len(lines[1:-2]) == 10
    assert lines[-2] == "    … and 2 more"
    assert lines[-1] == "    hint: correct them, or set data.bad_rows: skip to leave them out and count them"


def test_sources_that_cannot_be_read_are_told_together(write):
    with pytest.raises(RecipeError) as caught:
        read("a.jsonl", write("b.jsonl", ""), write("c.jsonl", [answer("下联")]))

    assert [problem.path for problem in caught.value.problems] == ["data.train.0.path", "data.train.1.path"]


def test_no_conversations_at_all_is_an_error_even_if_bad_rows_are_skipped(write):
    path = write("a.jsonl", [answer(""), answer("下联")])

    with pytest.raises(DataError, match="1 of 1 rows cannot be read"):
        read({"path": path, "take": 1}, bad_rows="skip")
    with pytest.raises(DataError, match=r"data\.train: there is nothing to read"):
        read()


def test_an_empty_file_in_a_folder_is_an_error(write):
    write("data/a.jsonl", [ROW])
    write("data/b.jsonl", "\n")

    with pytest.raises(DataError, match=r"data/b\.jsonl: is empty"):
        read({"path": "data", "columns": COLUMNS})


def test_take_reads_the_first_rows_over_all_files(write):
    write("data/a.jsonl", [answer("一"), answer("二")])
    write("data/b.jsonl", [answer("三"), answer("四")])
    write("data/c.jsonl", [answer("五")])
    data = read({"path": "data", "take": 3})

    assert [conversation.reference() for conversation in data.conversations] == ["一", "二", "三"]
    assert [(file.file, file.rows) for file in data.sources[0].files] == [("data/a.jsonl", 2), ("data/b.jsonl", 1)]


def test_take_of_more_than_there_is_reads_what_there_is(write):
    assert read({"path": write("a.jsonl", [answer("一")]), "take": 100}).rows == 1


def test_duplicates_differ_in_nothing_that_is_learnt(write):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    untrained = [*turns[:2], turns[2] | {"train": False}]
    path = write("a.jsonl", [{"messages": turns, "id": number} for number in range(3)] + [{"messages": untrained}])

    assert read(path).duplicates == 2


# --- the Hub


@pytest.fixture
def hub(monkeypatch, write):
    """A Hub that has one data set, and tells how it was asked."""
    import datasets

    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        if path != "poets/couplets":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")
        return datasets.Dataset.from_list([answer("一"), answer("二"), answer("三")])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_name_is_read_through_datasets(hub):
    data = read({"path": "poets/couplets", "subset": "ci", "split": "test", "folder": "song", "take": 2})

    assert hub == [("poets/couplets", {"name": "ci", "split": "test", "data_dir": "song"})]
    assert [conversation.reference() for conversation in data.conversations] == ["一", "二"]
    assert data.conversations[1].origin == Origin("poets/couplets", 2)
    (file,) = data.sources[0].files
    assert (file.file, file.rows, len(file.sha256)) == ("poets/couplets", 2, 64)


def test_the_hash_of_hub_rows_follows_their_content(hub):
    def hashed(**settings):
        return read({"path": "poets/couplets", **settings}).sources[0].files[0].sha256

    assert hashed() == hashed()
    assert hashed() != hashed(take=2)


def test_a_data_set_that_the_hub_does_not_have_is_a_problem(hub):
    with pytest.raises(RecipeError) as caught:
        read("poets/couplet")

    assert str(caught.value) == (
        "data.train.0.path: no such file or folder, and the Hub does not give the data set 'poets/couplet': "
        "Dataset 'poets/couplet' doesn't exist on the Hub"
    )
