"""Verse in files, and the command that checks it."""

import json

import pytest
from typer.testing import CliRunner

from tunesmith.apps.cli.main import app
from tunesmith.prosody import ProsodyError
from tunesmith.prosody.verses import read_verses

POEM = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
BROKEN = "白日依远尽，黄河入海流。欲穷千里目，更上一层楼。"


def run(*words: str, **options):
    return CliRunner().invoke(app, ["verse", *words], **options)


def test_verses_are_read_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.txt").write_text(f"{POEM}\n\n{BROKEN}\n", "utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"paragraphs": [POEM[:12], POEM[12:]]}) + "\n", "utf-8")
    (tmp_path / "c.json").write_text(json.dumps([{"text": POEM}, POEM]), "utf-8")

    verses = list(read_verses(tmp_path))

    assert [verse.text.replace("\n", "") for verse in verses] == [POEM, BROKEN, POEM, POEM, POEM]
    assert verses[2].where.endswith("b.jsonl:1")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": 1}\n', "a.jsonl:1: no verse in any of text"),
        ("a.jsonl", "{\n", "a.jsonl:1: not JSON"),
        ("a.json", "[3]", r"a.json\[1\]: a record is text or an object, found int"),
    ],
)
def test_a_record_without_verse_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ProsodyError, match=message):
        list(read_verses(tmp_path / name))


def test_check_says_what_is_wrong_and_why():
    shown = run("check", BROKEN).stdout

    assert "第1句第4字「远」 出律：应平，作仄" in shown
    assert "carry the beat" in shown


def test_check_of_many_sums_up(tmp_path):
    (tmp_path / "a.txt").write_text(f"{POEM}\n\n{BROKEN}\n", "utf-8")

    shown = run("check", str(tmp_path)).stdout

    assert "五绝: 2, strict 50.0%" in shown
    assert "a.txt[2]" in shown


def test_check_as_json_is_one_object_a_line(tmp_path):
    (tmp_path / "a.txt").write_text(f"{POEM}\n\n{BROKEN}\n", "utf-8")

    reports = [json.loads(line) for line in run("check", str(tmp_path), "--json").stdout.splitlines()]

    assert [report["strict"] for report in reports] == [True, False]
    assert reports[1]["findings"][0] | {"why": "", "why_english": ""} == {
        **{"rule": "off_tone", "name": "出律", "english": "tone off the pattern", "severity": "fault"},
        **{"line": 1, "position": 4, "character": "远", "expected": "平", "found": "仄", "why": "", "why_english": ""},
    }


def test_scan_shows_the_tones_and_marks_the_wrong_one():
    shown = run("scan", "-", input=BROKEN).stdout

    assert "仄仄平[仄]仄" in shown
    assert "平平仄仄平 韵" in shown


def test_rhyme_looks_up_every_book():
    shown = run("rhyme", "东").stdout

    assert [word for word in ("一東", "第一部", "十一庚", "十五雍") if word not in shown] == []


def test_pair_judges_a_couplet():
    shown = run("pair", "天增岁月人增寿", "春满乾坤福满门").stdout

    assert "合律 regular" in shown
    assert "parallelism" in shown


def test_a_pattern_of_ones_own_is_checked():
    shown = run("check", "明月松间照，清泉石上流", "--pattern", "平仄平平仄，平平仄仄平").stdout

    assert "自定" in shown
    assert "合律 regular" in shown
