"""Cleaning verse: what each step does to a poem, that nothing is lost unseen, and the command."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunesmith.apps.cli.main import app
from tunesmith.core.errors import UserError
from tunesmith.data.cleaning import CLEANERS, USUAL, Log
from tunesmith.data.poems import Poem, read_poems
from tunesmith.data.similar import find_groups, folded
from tunesmith.run.verse_cleaning import clean_files, make_steps

RAW = Path("/work/shared/data/raw_sample.jsonl")
STORK = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
SIMPLIFIED = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
SPRING = "春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。"
HUANXISHA = "一曲新词酒一杯，去年天气旧亭台。夕阳西下几时回。无可奈何花落去，似曾相识燕归来。小园香径独徘徊。"


def clean(step, *poems, **settings):
    """Return the poems that a step leaves, and its log."""
    log = Log()
    having = [poem if isinstance(poem, Poem) else Poem(poem, where=f"f:{n}") for n, poem in enumerate(poems, 1)]
    return list(CLEANERS.get(step).model_validate(settings).clean(having, log)), log


def one(step, poem, **settings):
    (cleaned,), log = clean(step, poem, **settings)
    return cleaned, log


# --- notes


@pytest.mark.parametrize(
    ("written", "verse", "notes"),
    [
        ("白日依山盡（一作沒），黃河入海流。", "白日依山盡，黃河入海流。", ["一作沒"]),
        ("白日依[山]盡，黃河入海流。", "白日依山盡，黃河入海流。", []),
        ("白日依[山]（川）盡，黃河入海流。", "白日依山盡，黃河入海流。", ["川"]),
        ("白日依山盡[一]，黃河入海流[2]。", "白日依山盡，黃河入海流。", []),
        (
            "白日依山盡，黃河入海流。\n（見《詩式》。\n）（按：重出〖下略〗。\n）。",
            "白日依山盡，黃河入海流。",
            ["見《詩式》", "按：重出〖下略〗"],
        ),
        (
            "白日依山盡，黃河入海流。\n以上見《唐詩紀事》卷二十八。",
            "白日依山盡，黃河入海流。",
            ["以上見《唐詩紀事》卷二十八"],
        ),
        ("（上缺）黃河入海流。", "黃河入海流。", ["上缺"]),
        ("使君曰：「白日依山盡。」", "使君曰：「白日依山盡。」", []),
        ("莫忘《陽關》聲，掩卷一悲傷。", "莫忘《陽關》聲，掩卷一悲傷。", []),
        ("一曲《陽關》三疊聲，手把《黃庭》一卷經。", "一曲《陽關》三疊聲，手把《黃庭》一卷經。", []),
        ("黃河入海流）。", "黃河入海流。", []),
        ("黃河入海流。（按語沒有完", "黃河入海流。按語沒有完", []),
        ("黃河入海流。（見《詩式》", "黃河入海流。", ["見《詩式》"]),
    ],
)
def test_notes_leave_the_verse_and_are_kept_beside_it(written, verse, notes):
    poem, _ = one("notes", written)

    assert poem.text == verse
    assert list(poem.notes) == notes
    assert poem.original == ({"text": written} if verse != written else {})


def test_a_poem_of_which_only_notes_are_left_is_dropped_with_its_text():
    kept, log = clean("notes", "空（按：此詩已佚。\n）。", "（劉瑛整理）。")

    assert kept == []
    assert [dropped.reason for dropped in log.dropped] == ["no verse is left"] * 2
    assert log.dropped[0].poem.text.startswith("空")


def test_notes_leave_the_title_too():
    poem, log = one("notes", Poem(STORK, title="登樓（一作朱斌詩）"))

    assert (poem.title, poem.original) == ("登樓", {"title": "登樓（一作朱斌詩）"})
    assert log.counts["notes in the title"] == 1
    assert one("notes", Poem(STORK, title="登樓（二）"), titles=False)[0].title == "登樓（二）"


# --- lost characters


@pytest.mark.parametrize("stand_in", ["□", "●", "\ufffd", "\ue864", "{艹尔}", "⿰木彡", "け", "囗"])
def test_every_stand_in_becomes_one_sign(stand_in):
    poem, _ = one("lost", f"白日依{stand_in}盡，黃河入海流。")

    assert poem.text == "白日依□盡，黃河入海流。"
    assert poem.extra["lost"] == 1


def test_poems_with_lost_characters_are_marked_or_dropped():
    assert len(clean("lost", "白□依山盡。", STORK)[0]) == 2
    kept, log = clean("lost", "白□依山盡。", "□□依山盡。", STORK, action="drop", at_most=1)
    assert [poem.lost for poem in kept] == [1, 0]
    assert [dropped.reason for dropped in log.dropped] == ["characters are lost"]


def test_a_gap_that_a_note_tells_of_counts_as_lost():
    poem = Poem("黃河入海流。", notes=("上缺",))

    assert one("lost", poem)[0].extra["gap"] == "上缺"
    assert clean("lost", poem, action="drop")[0] == []


# --- characters


def test_variants_become_usual_in_traditional_text_alone():
    poem, log = one("variants", "爲報黄河水，秋風起牀頭。")

    assert poem.text == "為報黃河水，秋風起床頭。"
    assert log.examples["variants written as usual"][0].before == "爲黄牀"
    assert one("variants", SIMPLIFIED)[0].text == SIMPLIFIED


@pytest.mark.parametrize("library", [True, False])
def test_scripts_change_and_what_was_written_is_kept(library, monkeypatch):
    if library:
        pytest.importorskip("opencc")
    else:
        monkeypatch.setattr("tunesmith.data.cleaning.script.is_missing", lambda name: True)
    to_simplified, _ = one("script", Poem(STORK, title="登鸛雀樓"))
    to_traditional, _ = one("script", SIMPLIFIED, to="traditional")

    assert (to_simplified.text, to_simplified.title) == (SIMPLIFIED, "登鹳雀楼")
    assert to_simplified.original == {"text": STORK, "title": "登鸛雀樓"}
    assert to_traditional.text == STORK
    assert one("script", SIMPLIFIED)[0].original == {}


def test_without_opencc_doubtful_characters_are_named(monkeypatch):
    monkeypatch.setattr("tunesmith.data.cleaning.script.is_missing", lambda name: True)
    poem, log = one("script", "白发三千丈，后来见云台。", to="traditional")

    assert poem.text[6:8] == "後來"
    assert set(poem.extra["doubtful"]) == {"发", "台"}
    assert log.counts["poems with doubtful characters"] == 1


# --- names


@pytest.mark.parametrize(
    ("poem", "author", "dynasty", "title"),
    [
        (Poem(STORK, author="不詳", dynasty="唐代"), "無名氏", "唐", ""),
        (Poem(SIMPLIFIED, author="佚名", dynasty="北宋"), "无名氏", "宋", ""),
        (Poem(STORK, author="僧貫休", extra={"src": "全唐诗/poet.tang.0.json#1"}), "釋貫休", "唐", ""),
        (Poem(STORK, author="釋德光", extra={"src": "全唐诗/poet.song.0.json#1"}), "釋德光", "宋", ""),
        (Poem(STORK, author="", extra={"src": "宋词"}), "", "宋", ""),
        (Poem(STORK, where="data/唐诗/a.json:3"), "", "唐", ""),
        (Poem(STORK, author="太宗皇帝", title="其一○  春"), "李世民", "", "其一〇 春"),
        (Poem(STORK, author="王之渙（〖1〗見集）"), "王之渙", "", ""),
        (Poem(STORK, author="", dynasty="金"), "", "金", ""),
    ],
)
def test_names_are_one(poem, author, dynasty, title):
    cleaned, _ = one("names", poem)

    assert (cleaned.author, cleaned.dynasty, cleaned.title) == (author, dynasty, title)


# --- marks


@pytest.mark.parametrize(
    ("written", "tune"),
    [
        ("白日依山盡黃河入海流欲窮千里目更上一層樓", ""),
        ("白日依山盡\n黃河入海流\n欲窮千里目\n更上一層樓", ""),
        ("白日依山盡,黃河入海流.\n欲窮千里目,更上一層樓.", ""),
    ],
)
def test_marks_are_restored_by_the_form(written, tune):
    assert one("punctuation", Poem(written, tune=tune))[0].text == STORK


def test_a_ci_stops_at_its_rhymes():
    bare = "".join(character for character in HUANXISHA if character not in "，。")
    poem, _ = one("punctuation", Poem(bare, tune="浣溪沙"))

    assert poem.text.split("\n")[0] == "一曲新词酒一杯。"
    assert poem.text.replace("\n", "").replace("。", "，") == HUANXISHA.replace("。", "，")


def test_marks_that_stand_there_stay_unless_asked_for():
    odd = STORK.replace("盡，", "盡。")

    assert one("punctuation", odd)[0].text == odd
    assert one("punctuation", odd, rewrite=True)[0].text == STORK
    assert one("punctuation", "登高望遠\n天地悠悠然")[1].counts["no marks, and no form that says where"] == 1


# --- duplicates


def test_the_same_poem_in_another_script_or_glyph_is_a_duplicate():
    kept, log = clean("duplicates", Poem(STORK, author="王之渙", where="a"), Poem(SIMPLIFIED, author="朱斌", where="b"))

    assert [poem.extra["same_as"] for poem in kept] == [["b"]]
    assert [dropped.reason for dropped in log.dropped] == ["duplicate, same characters under another author: a"]


def test_the_version_with_fewer_lost_characters_stays():
    damaged = Poem(STORK.replace("日", "□"), where="a")
    kept, log = clean("duplicates", damaged, Poem(STORK, where="b"))

    assert [poem.where for poem in kept] == ["b"]
    assert "a version" in log.dropped[0].reason


def test_versions_need_a_common_line_and_most_of_their_characters():
    other = STORK.replace("窮", "極").replace("目", "眼")
    two_lines_differ = "明月松間照，黃河入海流。\n欲窮千里目，遙看瀑布川。"

    assert len(clean("duplicates", STORK, other)[0]) == 1
    assert len(clean("duplicates", STORK, other, similar=1.0)[0]) == 2
    assert len(clean("duplicates", STORK, two_lines_differ, SPRING)[0]) == 3


def test_what_is_nearly_all_lost_is_like_nothing():
    assert find_groups([folded("□□□□日，□□□□流。")] * 2, 0.8) == [0, 1]


# --- form


def test_form_rhyme_and_metre_are_labelled():
    poem, log = one("form", STORK)

    assert (poem.form, poem.rhyme, poem.metre) == ("五绝", "十一尤", "合律")
    assert log.counts["五绝 合律"] == 1
    assert one("form", SPRING)[0].metre != "合律"
    assert one("form", Poem(HUANXISHA, tune="浣溪沙・小庭花"))[0].form == "浣溪沙"
    assert one("form", Poem("登高，望遠。", tune="無此調"))[1].counts["tune is not known"] == 1


def test_only_what_obeys_its_form_is_kept_where_that_is_asked():
    kept, log = clean("form", STORK, STORK.replace("樓", "去"), "登高。", keep="strict")

    assert [poem.text for poem in kept] == [STORK]
    assert {dropped.reason for dropped in log.dropped} == {"breaks its form: 韵脚应平", "no form that is known"}


# --- all together


def test_a_poem_goes_through_a_file_and_back(tmp_path):
    poem = Poem(STORK, "登樓", "王之渙", "唐", form="五绝", notes=("注",), original={"title": "x"}, extra={"id": 3})
    (tmp_path / "a.jsonl").write_text(json.dumps(poem.as_record()), "utf-8")
    (back,) = read_poems(tmp_path / "a.jsonl")

    assert back.as_record() == poem.as_record()


def test_every_record_is_kept_or_dropped_with_its_reason(tmp_path):
    records = [{"text": STORK, "id": 1}, {"paragraphs": STORK.split("\n")}, {"text": "（缺）"}, {"text": 3}, {"x": 1}]
    (tmp_path / "in.json").write_text(json.dumps(records), "utf-8")
    done = clean_files([tmp_path / "in.json"], tmp_path / "out.jsonl", make_steps())
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    dropped = [json.loads(line) for line in (tmp_path / "out.dropped.jsonl").read_text("utf-8").splitlines()]

    assert (done.read, done.kept, done.num_dropped, len(done.bad)) == (5, 1, 2, 2)
    assert kept[0]["id"] == 1
    assert [record["step"] for record in dropped] == ["read", "read", "notes", "duplicates"]
    assert "text holds" in dropped[0]["reason"]


def test_cleaning_twice_changes_nothing_more(tmp_path):
    written = {"text": "爲報[黄]河水（注），秋風入海流。欲窮千里目,更上一層樓.", "author": "不詳"}
    (tmp_path / "in.jsonl").write_text(json.dumps(written), "utf-8")
    clean_files([tmp_path / "in.jsonl"], tmp_path / "once.jsonl", make_steps())
    clean_files([tmp_path / "once.jsonl"], tmp_path / "twice.jsonl", make_steps())
    once, twice = (json.loads((tmp_path / f"{name}.jsonl").read_text("utf-8")) for name in ("once", "twice"))

    assert once == twice
    assert once["original"]["text"] == written["text"]


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (["lsot"], [], "did you mean 'lost'"),
        ([], ["lost"], "write step.setting=value"),
        ([], ["lost.acton=drop"], r"no setting 'acton' \(did you mean 'action'"),
        ([], ["lost.action=delete"], "'mark' or 'drop'"),
        (["notes"], ["lost.action=drop"], "the step 'lost' is not taken"),
    ],
)
def test_wrong_steps_and_settings_are_named(names, changes, said):
    with pytest.raises(UserError, match=said):
        make_steps(names, changes)


def test_the_usual_steps_exist():
    assert set(USUAL) | {"script"} == set(CLEANERS.names())


def test_the_command_counts_and_shows_examples(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": STORK.replace("盡，", "[盡]（一作沒），")}), "utf-8")
    words = ["verse", "clean", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    shown = CliRunner().invoke(app, [*words, "--report"])
    account = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)

    assert "notes in brackets" in shown.stdout
    assert "一作沒" in shown.stdout
    assert "mendings [x] taken as text" in shown.stdout
    assert "1 records: 1 kept, 0 dropped" in shown.stdout
    assert account["kept"] == 1
    assert not (tmp_path / "out.dropped.jsonl").exists()


def test_the_command_does_not_overwrite_what_it_reads(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": STORK}), "utf-8")

    with pytest.raises(UserError, match="would overwrite what is read"):
        clean_files([path], path, make_steps())


@pytest.mark.skipif(not RAW.exists(), reason="the dirty sample is not here")
def test_the_known_faults_of_the_dirty_sample_are_found(tmp_path):
    """854 poems hold □ in their text, 734 stand in groups of the same characters; what is kept and dropped is all."""
    done = clean_files([RAW], tmp_path / "out.jsonl", make_steps(["notes", "lost", "duplicates"]))
    logs = dict(done.steps)

    assert done.read == done.kept + done.num_dropped == 10_000
    assert logs["lost"].counts["poems with lost characters"] >= 900
    assert logs["notes"].counts["notes in brackets"] >= 1000
    assert 700 <= logs["duplicates"].counts["in groups of duplicates"] <= 780
