"""Every row of a file is read, with the line on which it begins; a broken file is explained."""

import csv
import gzip
import io
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import DataError
from tunesmith.data.conversation import BadRow, Record
from tunesmith.data.sources.files import READERS, find_files, read_file

ROWS = [{"prompt": "上联", "completion": "下联"}, {"prompt": "春\n风", "completion": '他说"好"'}]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_rows = st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=5)
spaces = st.text(" \t\r\n", max_size=4)


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def values(path: Path) -> list:
    return [row.values if isinstance(row, Record) else row.message for row in read_file(path)]


def lines(path: Path) -> list[int]:
    return [row.origin.line for row in read_file(path)]


def error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_file(path))
    return str(caught.value).replace(f"{path.parent}/", "")


def as_csv(rows, **options) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# --- every kind of file


def write_parquet(path: Path, rows) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


CONTENTS = {
    "a.json": json.dumps(ROWS, ensure_ascii=False, indent=2),
    "a.jsonl": "\n".join(json.dumps(row) for row in ROWS),
    "a.ndjson": "\n".join(json.dumps(row) for row in ROWS),
    "a.csv": as_csv(ROWS),
    "a.tsv": as_csv(ROWS, dialect="excel-tab"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("packed", [False, True])
def test_text_files_are_read_with_byte_order_mark_and_gzip(write, name, mark, packed):
    content = (mark + CONTENTS[name]).encode()
    path = write(name + ".gz", gzip.compress(content)) if packed else write(name, content)

    assert values(path) == ROWS


def test_every_kind_of_file_is_tested():
    assert set(READERS) == {Path(name).suffix for name in CONTENTS} | {".txt", ".parquet"}


def test_each_line_of_a_text_file_is_a_text(write):
    path = write("poems.txt", "春眠不觉晓\r\n\n 处处闻啼鸟 \u2028夜来\n")

    assert values(path) == [{"text": "春眠不觉晓"}, {"text": " 处处闻啼鸟 \u2028夜来"}]
    assert lines(path) == [1, 3]


def test_parquet_objects_have_only_the_fields_they_were_given(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"name": "f"}]}]}]
    write_parquet(tmp_path / "a.parquet", rows)

    assert values(tmp_path / "a.parquet") == rows
    assert lines(tmp_path / "a.parquet") == [1]


# --- lines


@settings(max_examples=150, deadline=None)
@given(rows=json_rows, gaps=st.lists(spaces, min_size=12, max_size=12), as_data=st.booleans())
def test_rows_of_a_json_list_come_with_the_line_they_begin_on(folder, rows, gaps, as_data):
    text, expected = "[" + gaps[0], []
    for number, row in enumerate(rows):
        text += ("," if number else "") + gaps[2 * number + 1]
        expected.append(text.count("\n") + 1)
        text += json.dumps(row, indent=number % 2 or None, ensure_ascii=False) + gaps[2 * number + 2]
    path = folder / "list.json"
    if as_data:
        text = f'{{"version": {{"data": [1]}}, "data": {text}]}}'
    else:
        text += "]" + gaps[11]
    path.write_text(text, encoding="utf-8", newline="")

    assert values(path) == rows
    assert lines(path) == expected


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(st.text("a,\"'\n\r;上", min_size=1), st.text()), min_size=1, max_size=6))
def test_rows_of_a_table_come_with_the_line_they_begin_on(folder, rows):
    path = folder / "table.csv"
    expected = []
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["question", "answer"])
        for row in rows:
            handle.flush()
            expected.append(path.read_bytes().count(b"\n") + 1)
            writer.writerow(row)

    assert values(path) == [{"question": question, "answer": answer} for question, answer in rows]
    assert lines(path) == expected


def test_values_longer_than_a_block_are_read(write):
    rows = [{"text": "长" * 100_000}, {"text": "b" * 3_000_000}, {"text": "c"}]
    path = write("long.json", "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]")

    assert values(path) == rows
    assert lines(path) == [2, 3, 4]


def test_a_number_cut_by_the_end_of_a_block_is_whole(write):
    head = '{"skipped": "' + "x" * ((1 << 16) - 40) + '", "count": '  # the block ends inside the number
    path = write("cut.json", head + "7" * 60 + ', "data": [{"text": "a"}]}')

    assert values(path) == [{"text": "a"}]


def test_blank_lines_are_not_rows(write):
    path = write("a.jsonl", '\n{"text": "a"}\n\n  \n{"text": "b"}\r\n\n')

    assert values(path) == [{"text": "a"}, {"text": "b"}]
    assert lines(path) == [2, 5]


# --- files that are not what their name says


def test_json_lines_in_a_json_file_are_read(write):
    assert values(write("a.json", CONTENTS["a.jsonl"])) == ROWS


def test_a_json_list_in_a_json_lines_file_is_read(write):
    assert values(write("a.jsonl", CONTENTS["a.json"])) == ROWS


def test_white_space_around_the_names_in_a_header_does_not_count(write):
    assert values(write("a.csv", "question , answer\n上联, 下联\n")) == [{"question": "上联", "answer": " 下联"}]


# --- rows that are bad


def test_a_broken_line_is_a_bad_row_and_the_others_are_read(write):
    path = write("a.jsonl", '{"text": "a"}\n{"text": "b",}\n[1]\n{"text": "c"}')

    first, broken, list_, last = read_file(path)
    assert (first.values, last.values) == ({"text": "a"}, {"text": "c"})
    assert isinstance(broken, BadRow)
    assert f"{path}:2: not JSON at column 14: " in str(broken)
    assert str(list_) == f"{path}:3: found a list of 1; each row must be an object"


def test_a_row_with_a_cell_too_many_is_bad(write):
    path = write("a.csv", 'question,answer\n"a\nb",c\nd,e,f\n')

    assert lines(path) == [2, 4]
    assert values(path) == [
        {"question": "a\nb", "answer": "c"},
        "found 3 cells; the header has 2: question, answer",
    ]


# --- files that are broken


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1},\n {"a" 2}]', "a.json:2: not JSON at column 7: Expecting ':' delimiter"),
        ("a.json", '[{"a": 1}\n {"a": 2}]', "a.json:2: not JSON at column 2: found {; expected , or ]"),
        ("a.json", '[{"a": 1},\n]', "a.json:2: not JSON at column 1: a comma before the closing bracket; remove it"),
        ("a.json", '[{"a": 1}', "a.json:1: not JSON at column 10: the file ends early; expected , or ]"),
        ("a.json", '[{"a": "1', "a.json:1: not JSON at column 8: Unterminated string starting at"),
        ("a.json", "[]\n{}", "a.json:2: not JSON at column 1: found more after the end of the list"),
        ("a.json", '{"data": []}\n{}', "a.json:2: not JSON at column 1: found more after the end of the object"),
        ("a.json", "{a: 1}", "a.json:1: not JSON at column 2: expected a key in double quotes"),
        ("a.json", '"a"', 'a.json: found the text "a"; must be a list of objects'),
        (
            "a.json",
            '{"rows": [{}], "version": 2}',
            "a.json: holds one object, with rows, version; must be a list of objects\n"
            "    hint: put the rows in a list, or name the list 'data', or write one object per line (.jsonl)",
        ),
        ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', "a.csv:3: the row that begins here cannot be read: unexpected end of data"),
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv:1: the header names these columns twice: 'a'"),
        (
            "a.csv",
            "a;b\n1;2\n",
            "a.csv:1: the header is one column, 'a;b'; it seems to be separated by semicolons, not commas\n"
            "    hint: a .csv file is separated by commas, a .tsv file by tabs",
        ),
        ("a.parquet", "PAR0", "a.parquet: not a Parquet file that can be read: "),
        ("a.jsonl.gz", "{}", "a.jsonl.gz: cannot be read: Not a gzipped file (b'{}')"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-9], "a.jsonl.gz: cannot be read: Compressed file ended"),
    ],
)
def test_a_broken_file_is_explained(write, name, content, message):
    assert error(write(name, content)).startswith(message)


def test_json_that_breaks_far_into_a_file_is_found_there(write):
    row = '{"text": "' + "长" * 99 + '"}'
    path = write("a.json", "[" + ",\n".join([row] * 20_000) + ',\n  {"text": oops}]')

    assert error(path) == "a.json:20001: not JSON at column 12: Expecting value"


# --- encodings


def test_text_in_gb18030_is_recognised_and_the_hint_converts_it(write):
    path = write("诗.csv", "question,answer\n上联,下联\n".encode("gb18030"))

    message, hint = error(path).split("\n")
    assert message == "诗.csv:2: byte 17 of the file (0xC9) is not UTF-8; the file looks like GB18030"
    subprocess.run(hint.partition("convert it: ")[2], shell=True, check=True, cwd=path.parent)
    assert values(path.with_name("utf8_诗.csv")) == [{"question": "上联", "answer": "下联"}]


def test_text_in_utf16_is_recognised(write):
    assert "looks like UTF-16" in error(write("a.jsonl", '{"text": "a"}'.encode("utf-16")))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".txt"])
def test_the_first_byte_that_is_not_utf8_is_named(write, suffix):
    path = write(f"a{suffix}", b'[\n{"text": "caf\xe9 bar"}]')

    assert error(path) == f"a{suffix}:2: byte 16 of the file (0xE9) is not UTF-8; files must be UTF-8"


# --- which files


def test_a_folder_is_all_its_data_files_in_order(write, tmp_path):
    for name in ("b/2.jsonl", "a.csv", "README.md", ".hidden.json", ".cache/x.json", "b/1.JSON", "dataset_info.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(name, "")
    files, others = find_files(tmp_path)

    assert [str(file.relative_to(tmp_path)) for file in files] == ["a.csv", "b/1.JSON", "b/2.jsonl"]
    assert [file.name for file in others] == ["README.md"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("trian.jsonl", "no such file or folder: trian.jsonl (did you mean 'train.jsonl'?)"),
        ("dta/train.jsonl", "no such file or folder: dta/train.jsonl"),
        ("sheet.xlsx", "sheet.xlsx: spreadsheets are not read; save the sheet as CSV (UTF-8); known are .json"),
        ("model.bin", "model.bin: files ending in .bin are not known; known are .json, .jsonl"),
        ("a.parquet.gz", "a.parquet.gz: files ending in .gz are not known; known are .json"),
        ("rows", "rows: the file name has no ending; known are .json"),
        ("empty", "no data files in the folder empty; it has notes.md; known are .json, .jsonl"),
    ],
)
def test_a_path_without_data_is_explained(write, tmp_path, asked, message):
    (tmp_path / "empty").mkdir()
    for name in ("train.jsonl", "sheet.xlsx", "model.bin", "a.parquet.gz", "rows", "empty/notes.md"):
        write(name, "")
    with pytest.raises(DataError) as caught:
        find_files(tmp_path / asked)

    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(message)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="has no 'dta'"):
        find_files(tmp_path / "dta" / "train.jsonl")
