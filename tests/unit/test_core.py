"""The building blocks: errors read well, files are whole or not there, names are suggested where one is close."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from tunesmith.core.errors import Problem, RecipeError, UnknownNameError, UserError
from tunesmith.core.events import ignore
from tunesmith.core.files import hash_file, read_jsonl, whole_folder, write_json, write_text
from tunesmith.core.registry import Block, suggest
from tunesmith.core.settings import process_settings

# --- errors


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (Problem("seed", "is -1"), "seed: is -1"),
        (Problem("seed", "is -1", "a.yaml:3"), "a.yaml:3: seed: is -1"),
        (Problem("", "is no override", "override 'x'"), "override 'x': is no override"),
        (Problem("seed", "is -1", "a.yaml:3", "use 0"), "a.yaml:3: seed: is -1\n    hint: use 0"),
    ],
)
def test_a_problem_says_where_what_and_how_to_mend_it(problem, expected):
    assert str(problem) == expected


def test_a_recipe_error_carries_every_problem():
    problems = [Problem("a", "is wrong"), Problem("b", "is worse", hint="mend it")]
    error = RecipeError(problems)

    assert isinstance(error, UserError)
    assert str(error) == "a: is wrong\nb: is worse\n    hint: mend it"
    assert [Problem(**each) for each in error.as_data()] == problems


def test_an_unknown_name_can_be_collected_by_pydantic():
    assert issubclass(UnknownNameError, UserError)
    assert issubclass(UnknownNameError, ValueError)


def test_nothing_listens_where_nobody_asked():
    assert ignore({"kind": "notice"}) is None


# --- names


@pytest.mark.parametrize(
    ("written", "names", "meant"),
    [
        ("lroa", ["lora", "full"], "lora"),
        ("LoRA", ["lora", "full"], "lora"),
        ("lora", ["LoRA"], "LoRA"),
        ("sfft", ["sft", "dpo"], "sft"),
        ("stf", ["sft", "dpo"], "sft"),
        ("rnk", ["rank"], "rank"),
        ("gpu", ["cpu", "cuda"], None),
        ("wandb", ["lora", "full"], None),
        ("", ["a"], None),
        ("x", [], None),
    ],
)
def test_a_close_name_is_suggested(written, names, meant):
    assert suggest(written, names) == (f" (did you mean {meant!r}?)" if meant else "")


# --- blocks


class Inner(Block):
    """A group."""

    short_for: ClassVar[str] = "path"

    path: str = ""
    """Where."""

    count: int = 1
    """How many."""

    share: float | None = None
    """How much."""

    wanted: bool | Literal["auto"] = "auto"
    """Whether."""


@pytest.mark.parametrize("written", ["a b", Path("a b"), {"path": "a b"}, Inner(path="a b")])
def test_a_text_or_path_can_stand_for_a_group(written):
    assert Inner.model_validate(written) == Inner(path="a b")


@pytest.mark.parametrize("name", ["count", "share"])
@pytest.mark.parametrize("value", [True, False])
def test_true_is_not_the_number_one(name, value):
    with pytest.raises(ValidationError, match="should be a number"):
        Inner.model_validate({name: value})


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_is_finite(value):
    with pytest.raises(ValidationError, match="finite"):
        Inner(share=value)


def test_true_is_true_where_that_is_asked():
    assert Inner(wanted=True).wanted is True


def test_unknown_settings_and_changes_are_refused():
    with pytest.raises(ValidationError, match="extra"):
        Inner.model_validate({"pth": "a"})
    with pytest.raises(ValidationError, match="frozen"):
        Inner().count = 2


# --- files


def test_text_is_written_whole_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "new folder" / "春.txt"
    write_text(path, "一")
    write_text(path, "二\r\n")

    assert path.read_bytes() == "二\r\n".encode()
    assert [each.name for each in path.parent.iterdir()] == ["春.txt"]


def test_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")

    assert path.read_text() == "old"


def test_json_is_readable_and_in_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"春": [1, None]})

    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "春": [\n    1,\n    null\n  ]\n}\n'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{"a": 1}\n{"a": 2', [{"a": 1}]),
        ('{"a": "\u2028"}\n', [{"a": "\u2028"}]),
        ("", []),
    ],
)
def test_a_log_cut_short_is_read_up_to_its_last_whole_line(tmp_path, content, expected):
    (tmp_path / "log.jsonl").write_text(content, encoding="utf-8")

    assert read_jsonl(tmp_path / "log.jsonl") == expected


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert read_jsonl(tmp_path / "log.jsonl") == []


def test_a_folder_appears_whole(tmp_path):
    with whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("w")
        assert not (tmp_path / "model").exists()

    assert (tmp_path / "model" / "weights").read_text() == "w"
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_folder_that_fails_half_way_is_not_there(tmp_path, error):
    def fail():
        with whole_folder(tmp_path / "model") as partial:
            (partial / "weights").write_text("half")
            raise error

    with pytest.raises(error):
        fail()

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "model") as partial:
            (partial / "weights").write_text(text)
    with pytest.raises(KeyError), whole_folder(tmp_path / "model") as partial:
        raise KeyError

    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_folder_left_half_full_by_a_crash_does_not_leak_into_the_next(tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "stale").write_text("stale")
    with whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("w")

    assert [each.name for each in (tmp_path / "model").iterdir()] == ["weights"]


def test_a_file_is_hashed_by_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"\r\n" * 1000)

    assert hash_file(tmp_path / "a") == hashlib.sha256(b"\r\n" * 1000).hexdigest()


# --- the environment


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, (0, 1, 0)), ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1))],
)
def test_a_process_knows_its_place(monkeypatch, variables, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = process_settings()

    assert (found.rank, found.world_size, found.local_rank) == expected


def test_what_the_user_set_in_the_environment_is_kept(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    code = "import os, tunesmith.core.settings as s; s.prepare_process(); print(os.getenv('TRANSFORMERS_VERBOSITY'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out == "debug\n"


@pytest.mark.parametrize("path", ["file/inside", "/proc/nosuch/file"])
def test_what_cannot_be_written_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(UserError, match=f"^cannot write {path}: (File exists|No such file or directory)$"):
        write_text(Path(path), "text")
    with pytest.raises(UserError, match=f"^cannot write {path}: "), whole_folder(Path(path)):
        pass
