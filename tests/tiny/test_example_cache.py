"""Examples that are kept are those that would be made; several processes make what one makes."""

import ast
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
from conftest import make_rows

import tunesmith
from tunesmith.core.errors import DataError
from tunesmith.core.events import ignore
from tunesmith.core.settings import cache_folder
from tunesmith.data.conversation import Conversation, Message, Origin
from tunesmith.engine.example import Example
from tunesmith.models.load import load_tokenizer
from tunesmith.run import example_cache, make_examples, prepare
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train
from tunesmith.stages.pretrain import Pretrain
from tunesmith.stages.sft import SFT
from tunesmith.templates.chat import ChatTemplate

PACKAGE = Path(tunesmith.__file__).parent


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Return the folder of this test's own cache, in which everything is kept, however fast it was made."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "_WORTH_KEEPING", -1.0)
    return tmp_path / "cache" / "examples"


@pytest.fixture
def rows(tmp_path):
    """Return a file with all that is counted: a bad row, a long answer, a long question, and some rows twice."""
    written = [*make_rows(20), *make_rows(20)[6:]]
    written[9]["output"] = "so on, " * 40
    written[4]["instruction"] = "a long question " * 20
    del written[5]["output"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written), "utf-8")
    return path


@pytest.fixture
def recipe(make_recipe, rows):
    """Return a function from changed data settings and other blocks to a recipe on those rows."""

    def make(data: dict | None = None, **blocks):
        settings = {"train": str(rows), "validation": [], "validation_share": 0.2, "bad_rows": "skip"}
        return make_recipe(data={**settings, **(data or {})}, **blocks)

    return make


def start(recipe, listener=ignore):
    """Return what a run on *recipe* would read."""
    data = prepare.open_data(recipe)
    return prepare.prepare(recipe, data, load_tokenizer(recipe.model, data.texts), listener)


def listed(examples) -> list:
    return [(str(e.origin), [(s.tokens.tolist(), s.weight.tolist()) for s in e.sequences], e.values) for e in examples]


def content(prepared) -> dict:
    """Return all that a run reads, so that it can be compared."""
    splits = {"train": prepared.train, "validation": prepared.validation}
    return {
        "examples": {name: split and listed(split.examples) for name, split in splits.items()},
        "counts": prepared.as_data(),
        "held_out": [(str(each.origin), each) for each in prepared.held_out],
        "files": prepared.files,
        "notices": prepared.notices,
    }


def entries(cache) -> list[Path]:
    return sorted(cache.glob("*/*"))


def refuse(*_, **__):
    raise AssertionError("this is not to be done again")


# --- the second start


def test_the_second_start_reads_nothing_and_makes_nothing(recipe, monkeypatch):
    before = start(recipe())
    monkeypatch.setattr(prepare, "read_data", refuse)
    monkeypatch.setattr(prepare, "make_examples", refuse)
    after = start(recipe())

    assert content(before) == content(after)
    assert not after.train.examples.tokens.flags.writeable  # the file itself, mapped
    assert not after.train.examples.tokens.flags.owndata
    lost = {name: after.train.counts[name] for name in ("rows", "bad_rows", "truncated", "dropped", "duplicates")}
    assert lost == {"rows": 34, "bad_rows": 1, "truncated": 1, "dropped": 1, "duplicates": 13}
    assert len(after.notices) == 4  # and one of what is both learnt and held out


def test_the_first_start_sees_what_is_kept(recipe, monkeypatch):
    kept = start(recipe())
    monkeypatch.setattr(prepare, "_WORTH_KEEPING", 1e9)
    shutil.rmtree(cache_folder())

    assert content(start(recipe())) == content(kept)
    assert not cache_folder().exists()


def test_a_run_learns_the_same_from_kept_examples(recipe, measured, cache, recwarn):
    first, second, third = (recipe().model_copy(update={"output": recipe().output / str(n)}) for n in range(3))
    train(first)
    (entry,) = entries(cache)
    train(second)
    shutil.rmtree(cache)
    train(third)

    assert measured(first.output) == measured(second.output) == measured(third.output)
    manifests = [json.loads((each.output / "manifest.json").read_text("utf-8"))["data"] for each in (first, third)]
    assert manifests[0] == manifests[1]
    assert [entry] == entries(cache)
    assert [w for w in recwarn if "not writable" in str(w.message)] == []


def test_a_stopped_run_goes_on_with_kept_examples(recipe, measured, monkeypatch):
    whole, stopped = (recipe().model_copy(update={"output": recipe().output / name}) for name in ("whole", "stopped"))
    train(whole)
    train(stopped)
    for folder in (stopped.output / "weights", stopped.output / "checkpoints" / "step-00000006"):
        shutil.rmtree(folder)
    monkeypatch.setattr(prepare, "make_examples", refuse)
    resume(stopped.output)

    assert measured(whole.output) == measured(stopped.output)


def test_validation_of_which_nothing_is_left_is_kept_too(recipe, rows, tmp_path):
    path = tmp_path / "validation.jsonl"
    path.write_text(json.dumps(make_rows(1)[0] | {"instruction": "a long question " * 20}) + "\n", "utf-8")
    before, after = (start(recipe({"validation": [str(path)], "validation_share": 0})) for _ in range(2))

    assert content(before) == content(after)
    assert list(after.validation.examples) == []


# --- never stale


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 150},
        {"too_long": "drop"},
        {"validation_share": 0.3},
        {"validation_share": 0},
        {"train": {"path": "{rows}", "take": 15}},
        {"train": {"path": "{rows}", "columns": {"prompt": "input", "completion": "output"}}},
        {"train": ["{rows}", "{rows}"]},
        {"validation": "{rows}", "validation_share": 0},
    ],
    ids=str,
)
def test_other_data_settings_have_examples_of_their_own(recipe, rows, cache, settings):
    start(recipe())
    changed = recipe(json.loads(json.dumps(settings).replace("{rows}", str(rows))))
    kept, again = start(changed), start(changed)
    shutil.rmtree(cache)

    assert content(start(changed)) == content(kept) == content(again)


@pytest.mark.parametrize(
    "blocks",
    [
        {"seed": 4},
        {"stage": {"type": "sft", "train_on_prompt": True}},
        {"stage": {"type": "sft", "train_on_prompt": 0.1}},
        {"stage": {"type": "sft", "roles": ["user", "assistant"]}},
        {"template": {"lost": "warn"}},
        {"template": "alpaca"},
    ],
    ids=str,
)
def test_other_settings_have_examples_of_their_own(recipe, cache, blocks):
    start(recipe())
    kept = start(recipe(**blocks))

    assert len(entries(cache)) == 2
    shutil.rmtree(cache)
    assert content(start(recipe(**blocks))) == content(kept)


def test_what_does_not_change_examples_uses_the_same_ones(recipe, cache):
    start(recipe())
    start(recipe(schedule={"learning_rate": 1e-5}, method="full", evaluation={"every": 3}))
    start(recipe({"validation_share": 0}))
    start(recipe({"validation_share": 0}, seed=4))  # nothing is drawn

    assert len(entries(cache)) == 2


def test_a_changed_file_is_read_again_even_where_size_and_time_are_the_same(recipe, rows):
    before, stat = start(recipe()), rows.stat()
    rows.write_text(rows.read_text("utf-8").replace("river", "RIVER"), "utf-8")
    os.utime(rows, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = start(recipe())

    assert stat.st_size == rows.stat().st_size
    assert before.files != after.files
    assert listed(before.train.examples) != listed(after.train.examples)


def test_a_file_that_changes_while_it_is_read_is_not_kept(recipe, rows, cache, monkeypatch):
    def change_and_read(asked, read=prepare.read_data):
        rows.write_text(rows.read_text("utf-8").replace("river", "RIVER"), "utf-8")
        return read(asked)

    monkeypatch.setattr(prepare, "read_data", change_and_read)
    prepared = start(recipe())

    assert f"{rows} changed while it was read" == prepared.remade_because
    assert entries(cache) == []


def test_another_tokenizer_in_the_same_folder_has_examples_of_its_own(recipe, cache):
    def tokens_of(tokenizer):
        return prepare.prepare(recipe(), prepare.open_data(recipe()), tokenizer).train.examples.tokens.tolist()

    tokenizer = load_tokenizer(recipe().model, lambda: [])
    before = tokens_of(tokenizer)
    tokenizer.add_tokens(["pine"])

    assert len(before) > len(tokens_of(tokenizer))
    assert len(entries(cache)) == 2


def test_a_bad_row_is_refused_although_examples_without_it_are_kept(recipe):
    start(recipe())

    with pytest.raises(DataError, match="1 of 34 rows cannot be read"):
        start(recipe({"bad_rows": "refuse"}))


def test_code_that_changes_makes_its_own_examples(recipe, cache, monkeypatch, tmp_path):
    start(recipe())
    copy = tmp_path / "tunesmith"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(tunesmith, "__file__", str(copy / "__init__.py"))
    start(recipe())

    assert len(entries(cache)) == 1
    with (copy / "data" / "formats" / "alpaca.py").open("a", encoding="utf-8") as code:
        code.write("# another line\n")
    start(recipe())
    assert len(entries(cache)) == 2


def test_the_code_that_is_hashed_is_all_that_makes_examples():
    """Beside it stand what loads models and tokenizers, what chooses a template, and what only names types."""
    elsewhere = {
        "tunesmith",
        "tunesmith.models.load",
        "tunesmith.run.base_template",
        "tunesmith.stages",
        "tunesmith.recipe.schema",
        "tunesmith.engine.pack",
        "tunesmith.engine.penalties",
        # what stages compute with once their examples are made
        "tunesmith.engine.divergence",
        "tunesmith.engine.likelihoods",
        "tunesmith.engine.model",
        "tunesmith.engine.value_head",
        "tunesmith.generation.policy",
        "tunesmith.generation.sampling",
        "tunesmith.methods._virtual",
        "tunesmith.models.schema",
        "tunesmith.scoring",
    }
    files = [
        file
        for name in example_cache.CODE
        for file in ((PACKAGE / name).rglob("*.py") if (PACKAGE / name).is_dir() else [PACKAGE / name])
    ]
    hashed = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files}
    hashed |= {name.removesuffix(".__init__") for name in hashed}
    imported = {
        node.module
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tunesmith")
    }

    # files of verse are cleaned and become data by commands of their own, before any recipe reads them
    assert {name for name in imported - hashed if not name.startswith("tunesmith.prosody")} <= elsewhere


def tokenizer_with(recipe, template: str):
    tokenizer = load_tokenizer(recipe.model, lambda: [])
    tokenizer.chat_template = template + tokenizer.chat_template
    return tokenizer


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y')", 'strftime_now( "%-d. %B" )'])
def test_examples_that_say_the_date_are_kept_for_the_day(recipe, cache, monkeypatch, call):
    template = "{% if strftime_now is defined %}{{ " + call + " }}{% endif %}"

    def run():
        return prepare.prepare(recipe(), prepare.open_data(recipe()), tokenizer_with(recipe(), template))

    run()
    assert run().remade_because == ""
    assert len(entries(cache)) == 1

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return cls(2099, 1, 1)

    monkeypatch.setattr(example_cache, "date", Tomorrow)
    run()
    assert len(entries(cache)) == 2


@pytest.mark.parametrize("call", ["strftime_now('%H:%M')", "strftime_now(x)", "strftime_now('%d %c')"])
def test_examples_that_say_the_time_are_not_kept(recipe, cache, call):
    template = "{% set x = '%d' %}{{ " + call + " }}"
    prepared = prepare.prepare(recipe(), prepare.open_data(recipe()), tokenizer_with(recipe(), template))

    assert prepared.remade_because == "the template writes the time of day"
    assert entries(cache) == []


def test_a_tokenizer_that_is_a_program_is_not_trusted_to_stay(recipe, cache):
    tokenizer = load_tokenizer(recipe().model, lambda: [])
    own = type("Own", (type(tokenizer),), {})  # a class of this file, as of a model's own code
    tokenizer.__class__ = own
    prepared = prepare.prepare(recipe(), prepare.open_data(recipe()), tokenizer)

    assert prepared.remade_because == "the tokenizer is a Python program, whose changes are not seen here"
    assert entries(cache) == []


def test_data_of_the_hub_are_not_kept(recipe):
    prepared = start(recipe())
    hub = recipe().model_copy(update={"data": recipe({"train": "openai/gsm8k"}).data})

    kept = example_cache.ExampleCache(hub).keep(prepared)
    assert kept.remade_because == "openai/gsm8k is on the Hub, which may change it"


# --- a folder that anything may have happened to


@pytest.mark.parametrize("name", ["train.arrow", "validation.arrow", "about.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "one byte", "removed", "a folder"])
def test_a_damaged_entry_is_made_again(recipe, cache, name, damage):
    before = content(start(recipe()))
    (entry,) = entries(cache)
    path = entry / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "removed":
        at = len(whole) // 2
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        path.write_bytes({"cut": whole[:at], "emptied": b"", "one byte": flipped}[damage])

    assert before == content(start(recipe()))
    assert whole == path.read_bytes()
    assert before == content(start(recipe()))


def test_the_cache_may_be_deleted_under_a_run(recipe):
    kept = start(recipe())
    before = content(kept)
    shutil.rmtree(cache_folder())

    assert before == content(kept)
    assert before == content(start(recipe()))


def test_a_cache_that_cannot_be_written_is_done_without(recipe, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file"))
    heard = []
    settled = settle(recipe(), heard.append)

    assert settled.plan.why["examples"] == (
        f"counted in the data; made anew by every run, because {tmp_path / 'file'} cannot be written: Not a directory"
    )
    assert [text for text in settled.plan.notices if "kept" in text] == []
    assert heard == []


def test_of_two_that_keep_the_same_the_first_wins(recipe, cache, monkeypatch):
    """The second finds the entry when it has made its own."""
    one = start(recipe())
    monkeypatch.setattr(example_cache.ExampleCache, "load", lambda *_: None)
    two = start(recipe())

    assert content(one) == content(two)
    assert two.remade_because == ""
    assert len(entries(cache)) == 1


def test_what_nobody_used_for_a_month_is_removed(recipe, cache):
    start(recipe({"max_tokens": 150}))
    start(recipe({"max_tokens": 151}))
    start(recipe(seed=9))
    left = cache / "data" / f"{example_cache._PARTIAL}of-a-process-that-was-killed"
    left.mkdir(parents=True)
    old = next(path for path in entries(cache) if path != left)
    for path in (old, left):
        os.utime(path, (0, time.time() - 31 * 24 * 3600))
    others = [path for path in entries(cache) if path not in (old, left)]
    start(recipe({"max_tokens": 152}))

    assert len(others) == 2
    assert set(others) <= set(entries(cache))
    assert len(entries(cache)) == 3
    assert not left.parent.exists()


def test_what_is_used_stays(recipe, cache):
    start(recipe())
    (entry,) = entries(cache)
    os.utime(entry, (0, 0))
    start(recipe())

    assert time.time() - entry.stat().st_mtime < 3600


def test_the_cache_lies_where_the_user_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/li")
    monkeypatch.setenv("TUNESMITH_CACHE", "~/kept")
    assert Path("/home/li/kept") == cache_folder()
    monkeypatch.setenv("TUNESMITH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/li")
    assert Path("/var/cache/li/tunesmith") == cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Path("/home/li/.cache/tunesmith") == cache_folder()


# --- several processes


class Valued(SFT):
    """Keeps a value beside each example, and the prompt as a sequence of its own."""

    def examples(self, conversations, template, limit):
        made = super().examples(conversations, template, limit)
        return [[Example(e.sequences * 2, e.origin, (e.tokens / 3, "ünïcode")) for e in each] for each in made]


class Killed(SFT):
    """Is ended by the system, as for want of memory, in every process but the first."""

    def examples(self, conversations, template, limit):
        if multiprocessing.parent_process() is not None:
            os._exit(1)
        return super().examples(conversations, template, limit)


def conversations(count: int) -> list[Conversation]:
    """Dialogues of one to three turns, some with reasoning."""
    turns = [
        (Message("user", f"question {n}"), Message("assistant", f"answer {n} " * (n % 7 + 1), reasoning="hm" * (n % 2)))
        for n in range(count)
    ]
    return [
        Conversation(sum(turns[max(0, n - n % 3) : n + 1], ()), origin=Origin(f"file {n % 2}", n)) for n in range(count)
    ]


def account(made) -> tuple:
    return listed(made.examples), *(vars(made) | {"examples": None}).items()


@pytest.mark.parametrize(
    ("stage", "too_long"),
    [(SFT(), "refuse"), (Valued(), "cut"), (Killed(), "drop")],
    ids=["refused", "values", "killed"],
)
def test_two_processes_make_what_one_makes(tokenizer, stage, too_long):
    maker = make_examples.Maker(stage, ChatTemplate(tokenizer), 90, too_long)
    one, two = (make_examples.make_examples(maker, conversations(41), processes=n) for n in (1, 2))

    assert account(one) == account(two)
    assert one.notes["lost_reasoning"] == sum(bool(m.reasoning) for each in conversations(41) for m in each.messages)
    assert (too_long == "drop") == (one.truncated == 0) == (one.dropped > 0)
    assert (too_long == "refuse") == bool(one.too_long)


def test_examples_with_values_are_kept_with_them(recipe, tokenizer, tmp_path):
    maker = make_examples.Maker(Valued(), ChatTemplate(tokenizer), 90, "cut")
    table = make_examples.make_examples(maker, conversations(5)).examples
    example_cache._write_table(tmp_path / "a.arrow", table)
    back = example_cache._read_table(example_cache._map(tmp_path / "a.arrow"))

    assert listed(table) == listed(back)
    assert (pytest.approx(table[0].tokens / 6), "ünïcode") == back[0].values


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_that_cannot_be_used_are_named_alike(tokenizer, monkeypatch, processes):
    """All of them are counted, although each part of the data is made by itself."""
    monkeypatch.setattr(make_examples, "_CHUNK", 7)
    given = conversations(40)
    for number in (3, 11, 12, 39):
        given[number] = Conversation((Message("user", "?"),), origin=Origin("rows.jsonl", number))
    template = ChatTemplate(tokenizer)
    with pytest.raises(DataError) as expected:
        SFT().examples(given, template, 90)
    with pytest.raises(DataError) as found:
        make_examples.make_examples(make_examples.Maker(SFT(), template, 90, "cut"), given, processes=processes)

    assert str(expected.value) == str(found.value)
    assert "4 of 40 conversations do not fit the template" in str(found.value)
    with pytest.raises(DataError, match="40 such rows"):
        make_examples.make_examples(make_examples.Maker(Pretrain(), template, 90, "cut"), given)


def test_a_script_without_a_main_guard_ends(tokenizer, tmp_path):
    """Its processes die as they start, for they would start it again; the first one makes all examples itself."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    script = tmp_path / "script.py"
    script.write_text(
        f"""
from transformers import AutoTokenizer
from tunesmith.data.conversation import Conversation, Message
from tunesmith.run.make_examples import Maker, make_examples
from tunesmith.stages.sft import SFT
from tunesmith.templates.chat import ChatTemplate

tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "tokenizer")!r})
tokenizer.filling = "x" * 1_000_000  # more than a pipe holds
given = [Conversation((Message("user", "春"), Message("assistant", "秋"))) for _ in range(20)]
print("made", len(make_examples(Maker(SFT(), ChatTemplate(tokenizer), 90, "cut"), given, processes=2).examples))
""",
        "utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)

    assert done.stdout.splitlines()[-1:] == ["made 20"], done.stderr


def test_processes_are_used_where_they_win(tokenizer, monkeypatch):
    monkeypatch.setattr(make_examples, "_WORTH_PROCESSES", 100)
    monkeypatch.setattr(make_examples.os, "sched_getaffinity", lambda _: range(6))
    maker = make_examples.Maker(SFT(), ChatTemplate(tokenizer), 90, "cut")
    few, many = conversations(10), conversations(60)

    assert make_examples._choose_processes(maker, few) == 1
    assert make_examples._choose_processes(maker, many) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun started three more, which do the same
    assert make_examples._choose_processes(maker, many) == 1


def test_long_work_tells_how_far_it_is(tokenizer, monkeypatch):
    monkeypatch.setattr(make_examples, "_CHUNK", 4)
    maker = make_examples.Maker(SFT(), ChatTemplate(tokenizer), 90, "cut")
    heard = []
    make_examples.make_examples(maker, conversations(10), heard.append)
    assert heard == []

    monkeypatch.setattr(make_examples, "_QUIET", -1)
    make_examples.make_examples(maker, conversations(10), heard.append)
    assert [{"kind": "progress", "task": "tokenizing", "done": n, "total": 10} for n in (2, 4, 6, 8, 10)] == heard
