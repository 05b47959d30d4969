"""Verse becomes instructions: what is asked, what is left out, the split, and that the files train."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunesmith.apps.cli.main import app
from tunesmith.core.errors import UserError
from tunesmith.data.cleaning.form import report_of
from tunesmith.data.poems import Poem
from tunesmith.data.read import read_sources
from tunesmith.data.source import Source
from tunesmith.data.verse_tasks import POEM_TASKS
from tunesmith.run.verse_dataset import TASKS, Genre, Wanted, build_dataset, read_shares

TANG = Path("/work/shared/data/tang_jueju_lvshi.jsonl")
STORK = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
SPRING = "国破山河在，城春草木深。\n感时花溅泪，恨别鸟惊心。\n烽火连三月，家书抵万金。\n白头搔更短，浑欲不胜簪。"
BROKEN = "白日依远尽，黄河入海流。\n欲穷千里目，更上一层楼。"
CI = "一曲新词酒一杯。\n去年天气旧亭台。\n夕阳西下几时回。\n无可奈何花落去，似曾相识燕归来。\n小园香径独徘徊。"
POEMS = [
    {"text": STORK, "title": "登鹳雀楼", "author": "王之涣"},
    {"lines": SPRING.replace("\n", "").replace("。", "，").split("，")[:-1], "title": "春望", "author": "杜甫"},
    {"text": STORK.replace("日", "□"), "title": "登楼"},
    {"text": BROKEN, "title": "其三"},
    {"text": "床前明月光"},
]
COUPLETS = [
    {"u": "天增岁月人增寿", "l": "春满乾坤福满门"},
    {"upper": "明月松间照", "lower": "清泉石上流"},
    {"text": "爆竹声声辞旧岁，桃符处处迎新年"},
    {"u": "明月松间照", "l": "清风竹下吹"},
    {"u": "春满乾坤福满门", "l": "天增岁月人增寿"},
]


@pytest.fixture
def build(tmp_path):
    """Write records to a file and build a data set from it: the account, training and held-out examples."""

    def build_from(records, genre=Genre.POEMS, **wanted):
        path, output = tmp_path / "in.json", tmp_path / "out.json"
        path.write_text(json.dumps(records), "utf-8")
        kinds = wanted.pop("kinds", None)
        built = build_dataset([path], output, Wanted(genre, read_shares(genre, kinds), **wanted))
        held_out = json.loads(built.validation_file.read_text("utf-8")) if built.validation_file else []
        return built, json.loads(output.read_text("utf-8")), held_out

    return build_from


def asked(kind, record, genre=Genre.POEMS):
    """Return one example of a kind, as it would be made of a poem."""
    from random import Random

    poem = Poem(record["text"], record.get("title", ""), record.get("author", ""), tune=record.get("tune", ""))
    return TASKS[genre][kind].example(poem, report_of(poem), Random(0))


# --- kinds of instruction


@pytest.mark.parametrize(
    ("kind", "named", "given", "answer"),
    [
        ("theme", ["登鹳雀楼"], "", STORK),
        ("rhyme", ["登鹳雀楼", "尤"], "", STORK),
        ("rhyme_words", [], "流、楼", STORK),
        ("style", ["王之涣", "登鹳雀楼"], "", STORK),
        ("first_line", [], "白日依山尽", STORK),
        ("continuation", [], "白日依山尽，黄河入海流。", "欲穷千里目，更上一层楼。"),
        ("acrostic", [], "白黄欲更", STORK),
        ("title", [], STORK, "登鹳雀楼"),
    ],
)
def test_a_poem_is_asked_for_in_many_ways(kind, named, given, answer):
    example = asked(kind, POEMS[0])

    assert [word for word in named if word not in example["instruction"]] == []
    assert (example["input"], example["output"]) == (given, answer)
    assert "{" not in example["instruction"]
    assert "五绝" in example["instruction"] or "五言绝句" in example["instruction"] or kind == "title"


def test_the_fourth_line_answers_the_third():
    example = asked("next_line", {"text": SPRING, "title": "春望"})

    assert (example["input"], example["output"]) == ("感时花溅泪", "恨别鸟惊心")
    assert asked("next_line", POEMS[0]) is None


@pytest.mark.parametrize("title", ["", "句", "无题", "其三", "失题", "送□十二", "一" * 20])
def test_a_title_that_says_nothing_is_no_theme(title):
    assert asked("theme", {"text": STORK, "title": title}) is None
    assert asked("title", {"text": STORK, "title": title}) is None


def test_numbers_of_a_series_are_no_part_of_a_theme():
    assert asked("title", {"text": STORK, "title": "秋兴八首 其三"})["output"] == "秋兴"
    assert "其三" not in asked("theme", {"text": STORK, "title": "秋兴八首 其三"})["instruction"]


@pytest.mark.parametrize("author", ["", "佚名", "无名氏"])
def test_nobody_has_no_style(author):
    assert asked("style", {"text": STORK, "title": "登鹳雀楼", "author": author}) is None


@pytest.mark.parametrize(
    ("kind", "given"), [("tune", ""), ("first_line", "一曲新词酒一杯"), ("pattern", "中仄平平仄仄平韵。")]
)
def test_a_ci_is_asked_for_by_its_tune(kind, given):
    example = asked(kind, {"text": CI, "tune": "浣溪沙"}, Genre.CI)

    assert "浣溪沙" in example["instruction"]
    assert example["input"].startswith(given)
    assert example["output"] == CI


@pytest.mark.parametrize(("genre", "kind"), [(genre, kind) for genre in TASKS for kind in TASKS[genre]])
def test_every_kind_has_several_wordings_and_says_what_it_is(genre, kind):
    task = TASKS[genre][kind]

    assert task.summary
    assert len(set(task.wordings)) >= 2


# --- what is taken


def test_what_is_left_out_is_counted(build):
    built, train, _ = build(POEMS)

    assert (built.read, built.poems, len(train)) == (5, 3, 3)
    assert built.left_out == {"characters are lost": 1, "no form that is known": 1}


def test_only_verse_that_obeys_its_form_where_that_is_asked(build):
    built, train, _ = build(POEMS, strict=True, kinds="first_line")

    assert built.left_out["breaks a rule (--strict)"] == 1
    # the poem without marks got those of its form
    assert sorted(example["output"] for example in train) == sorted([STORK, SPRING])


def test_couplets_are_read_under_their_usual_names(build):
    built, train, _ = build(COUPLETS, Genre.COUPLETS, strict=True)

    assert built.left_out == {"breaks a rule (--strict)": 1}
    assert sorted((example["input"], example["output"]) for example in train) == [
        ("天增岁月人增寿", "春满乾坤福满门"),
        ("明月松间照", "清泉石上流"),
        ("明月松间照", "清风竹下吹"),
        ("爆竹声声辞旧岁", "桃符处处迎新年"),
    ]


def test_shares_decide_how_often_a_kind_comes(build):
    many = [{"text": STORK.replace("千", numeral), "title": "登楼"} for numeral in "百万十半数几双叠层远"]
    built, _, _ = build(many, kinds="title=1000,acrostic=0.001")

    assert built.kinds == {"title": 10}


def test_each_poem_may_be_asked_for_several_times_in_different_ways(build):
    built, train, _ = build(POEMS[:1], per_poem=3)

    assert len(train) == 3
    assert max(built.kinds.values()) == 1


def test_the_same_seed_gives_the_same_file_whatever_the_order(build):
    one = build(POEMS, seed=3)[1]

    assert build(POEMS[::-1], seed=3)[1] == one
    assert any(build(POEMS, seed=seed)[1] != one for seed in range(4, 10))


def test_the_limit_draws_poems(build):
    built, train, _ = build(POEMS, limit=2)

    assert built.poems == len(train) == 2


# --- the split


def test_versions_of_a_poem_stay_on_one_side(build):
    """Twenty poems of twenty characters each, all different, and each again with one character changed."""
    runs = ["".join(map(chr, range(0x4E00 + 40 * number, 0x4E14 + 40 * number))) for number in range(20)]
    versions = [run[:7] + "山" + run[8:] for run in runs]
    for seed in range(3):
        _, train, held_out = build(
            [{"text": run} for run in runs + versions], validation=0.4, seed=seed, kinds="acrostic"
        )
        first = {
            side: {example["output"][:5] for example in having} for side, having in (("t", train), ("h", held_out))
        }

        assert len(train) + len(held_out) == 40
        assert len(first["t"]) * 2 == len(train)
        assert first["t"] & first["h"] == set()


def test_couplets_that_share_a_line_stay_on_one_side(build):
    pairs = [
        {"u": f"明月{a}间照", "l": f"清泉{b}上流"} for a, b in zip("松竹梅柳花林云山", "石岸坡渡沙屋楼江", strict=True)
    ]
    pairs += [{"u": pair["u"], "l": pair["l"].replace("清", "寒")} for pair in pairs]
    _, train, held_out = build(pairs, Genre.COUPLETS, validation=0.4)

    assert len(train) + len(held_out) == 16
    assert {e["input"] for e in train} & {e["input"] for e in held_out} == set()


def test_a_split_that_holds_out_nothing_is_refused(build):
    with pytest.raises(UserError, match="holds out none"):
        build(POEMS[:1], validation=1e-9)


# --- that it trains


def test_the_files_are_read_as_alpaca(build, tmp_path):
    build(POEMS, per_poem=4)
    found = read_sources([Source(path=str(tmp_path / "out.json"))], bad_rows="refuse")

    assert found.sources[0].format.type_name() == "alpaca"
    assert (len(found.conversations), found.bad) == (12, [])
    assert [message.role for message in found.conversations[0].messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("genre", "kinds", "said"),
    [
        (Genre.POEMS, "them", "did you mean 'theme'"),
        (Genre.POEMS, "theme=x", "the share of a kind is a number"),
        (Genre.POEMS, "theme=0", "more than 0"),
        (Genre.CI, ",", "no kind of instruction"),
    ],
)
def test_kinds_that_are_not_there_are_named(genre, kinds, said):
    with pytest.raises(UserError, match=said):
        read_shares(genre, kinds)


def test_nothing_to_write_is_an_error_that_says_why(build):
    with pytest.raises(UserError, match=r"of 1 records none became a training example \(no form that is known: 1"):
        build(POEMS[4:])


def test_the_command_builds_and_counts(tmp_path):
    (tmp_path / "in.json").write_text(json.dumps(POEMS), "utf-8")
    words = ["verse", "dataset", "poems", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")]
    shown = CliRunner().invoke(app, [*words, "--kinds", "acrostic"])
    account = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)

    assert "3 of 5 records: 3 examples in" in shown.stdout
    assert "left out: characters are lost" in shown.stdout
    assert account["train"] == 3


@pytest.mark.skipif(not TANG.exists(), reason="the Tang corpus is not here")
def test_real_poems_become_examples_that_are_all_read(tmp_path):
    lines = TANG.read_text("utf-8").splitlines()[:600]
    (tmp_path / "tang.jsonl").write_text("\n".join(lines), "utf-8")
    wanted = Wanted(Genre.POEMS, read_shares(Genre.POEMS, None), per_poem=2, validation=0.1, strict=True)
    built = build_dataset([tmp_path / "tang.jsonl"], tmp_path / "out.json", wanted)
    found = read_sources([Source(path=str(tmp_path))], bad_rows="skip")

    assert built.read == 600 == built.poems + sum(built.left_out.values())
    assert set(built.kinds) == set(POEM_TASKS)
    assert found.rows >= built.train + built.validation
