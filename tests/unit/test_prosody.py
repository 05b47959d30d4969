"""Verse: readings, forms, metre, rhyme, couplets, patterns.  The poems are a handful of textbook ones."""

import random

import pytest

from tunesmith.prosody import BOOKS, Pattern, ProsodyError, Rule, Tier, check, find_book, readings, rule_texts
from tunesmith.prosody.books import CILIN, PINGSHUI, TONES
from tunesmith.prosody.ci import tunes
from tunesmith.prosody.line_types import fits
from tunesmith.prosody.metre import find_metre
from tunesmith.prosody.parallelism import percentile
from tunesmith.prosody.readings import guangyun, mandarin

STORK_TOWER = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
SPRING_VIEW = "國破山河在，城春草木深。感時花濺淚，恨別鳥驚心。烽火連三月，家書抵萬金。白頭搔更短，渾欲不勝簪。"
WEI_CITY = "渭城朝雨浥轻尘，客舍青青柳色新。劝君更尽一杯酒，西出阳关无故人。"


def rules(text, form=None, **options):
    return [(str(finding.rule), finding.line, finding.position) for finding in check(text, form, **options).findings]


# --- readings and books


def test_every_rhyme_of_guangyun_is_in_every_historical_book():
    headings = {rhyme for rhymes in guangyun().rhymes_of.values() for rhyme in rhymes}

    assert len(headings) == 206
    assert set(TONES) == headings == set(PINGSHUI.members)
    assert set(CILIN.members) == headings
    assert (len(PINGSHUI.groups), len(CILIN.groups)) == (106, 19)


def test_every_final_of_mandarin_is_in_every_modern_book():
    finals = {final[:-1] for having in mandarin().values() for final in having}

    for name, groups in (("中华新韵", 14), ("中华通韵", 16)):
        assert finals <= set(BOOKS[name].members)
        assert len(BOOKS[name].groups) == groups


def test_a_book_is_found_by_its_names():
    assert find_book("新韵") is find_book("New Rhymes") is BOOKS["中华新韵"]
    with pytest.raises(ProsodyError, match="平水韵, 词林正韵"):
        find_book("洪武正韵")


@pytest.mark.parametrize(
    ("character", "group", "tone"),
    [("東", "一東", "平"), ("东", "一東", "平"), ("流", "十一尤", "平"), ("雪", "九屑", "入"), ("歎", "十四寒", "平")],
)
def test_a_reading_has_tone_and_rhyme(character, group, tone):
    """歎 rhymes level in verse only: Guangyun has the departing tone alone."""
    assert (group, tone) in {(reading.group, reading.tone) for reading in readings(character)}


def test_readings_that_verse_does_not_use_are_as_good_as_dead():
    """不 has a level reading in Guangyun; in verse it is oblique."""
    tiers = {reading.level: reading.tier for reading in readings("不")}

    assert tiers[False] is Tier.COMMON
    assert tiers[True] is Tier.UNUSED
    assert {reading.tier for reading in readings("看")} == {Tier.COMMON}


def test_a_simplified_character_has_the_readings_of_all_it_stands_for():
    assert {reading.rhyme for reading in readings("发")} == {"月"}
    assert {"寒", "翰"} <= {reading.rhyme for reading in readings("干")}
    assert {reading.rhyme for reading in readings("干", simplified=False)} == {"寒"}


@pytest.mark.parametrize("character", ["□", "a", "🀄", " ", "囗", ""])
def test_what_is_no_character_has_no_reading(character):
    assert readings(character) == ()


# --- metre


def test_the_four_types_fit_themselves_and_no_other():
    types = ["仄仄平平仄", "平平仄仄平", "平平平仄仄", "仄仄仄平平"]
    for line in types:
        assert [fit.pattern.replace("中", line[0]) for fit in fits(line) if fit.cost == 0] == [line]


def test_the_best_reading_is_no_dearer_than_any_reading_of_the_choices():
    """A line with open characters costs as much as the cheapest way to settle them."""
    chance = random.Random(0)
    for _ in range(20):
        tones = ["".join(chance.choice("平仄中") for _ in range(5)) for _ in range(4)]
        settled = [
            find_metre([line.replace("中", letter) for line, letter in zip(tones, letters, strict=True)]).cost
            for letters in ("平平平平", "仄仄仄仄", "平仄平仄", "仄平仄平")
        ]

        assert find_metre(tones).cost <= min(settled)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (("off_tone", 1, 4), "白日依远尽，黄河入海流。欲穷千里目，更上一层楼。"),
        (("rhyme_tone", 2, 5), "白日依山尽，黄河入海水。欲穷千里目，更上一层楼。"),
        (("upper_end", 3, 5), "白日依山尽，黄河入海流。欲穷千里天，更上一层楼。"),
        (("off_rhyme", 8, 5), SPRING_VIEW.replace("簪", "天")),
        (("repeated_rhyme", 8, 5), SPRING_VIEW.replace("簪", "金")),
        (("three_level", 4, 3), "白日依山尽，黄河入海流。欲穷千里目，更上层层楼。"),
        (("lone_level", 2, 1), "白日依山尽，大河入海流。欲穷千里目，更上一层楼。"),
        (("adhesion", 3, 2), WEI_CITY),
        (("length", 3, 0), "白日依山尽，黄河入海流。欲穷千里，更上一层楼。"),
        (("unknown_character", 3, 4), "白日依山尽，黄河入海流。欲穷千□目，更上一层楼。"),
        (("great_twist", 1, 4), "向晚意不适，驱车登古原。夕阳无限好，只是近黄昏。"),
        (("swapped", 1, 3), "移舟泊烟渚，日暮客愁新。野旷天低树，江清月近人。"),
        (("first_neighbour", 1, 7), "清明时节雨纷纷，路上行人欲断魂。借问酒家何处有，牧童遥指杏花村。"),
    ],
)
def test_a_rule_is_found_where_it_stands(rule, text):
    assert rule in rules(text)


def test_each_rule_has_its_texts():
    """What, why and source in Chinese and English: the guide and every report show them."""
    texts = rule_texts()

    assert set(texts) == set(Rule)
    assert all(text.chinese and text.english and text.why_chinese and text.why_english for text in texts.values())


@pytest.mark.parametrize("text", [STORK_TOWER, SPRING_VIEW])
def test_canonical_poems_are_regular_however_they_are_written(text):
    bare = "".join(character for character in text if character not in "，。")
    for written in (
        text,
        text.replace("。", "。\n"),
        text.replace("，", "\n").replace("。", "\n"),
        bare,
        f"题\n{text}",
    ):
        report = check(written)

        assert report.strict, [str(finding) for finding in report.findings]
        assert "".join(line.text for line in report.lines) == bare


def test_a_report_says_how_each_character_was_read():
    """勝 has two tones: here it is level."""
    report = check(SPRING_VIEW)

    assert report.form == "五律"
    assert report.rhyme_group == "十二侵"
    assert report.lines[7].tones == "平仄仄平平"
    assert report.reading(8, 4).tone == "平"
    assert report.as_data()["script"] == "traditional"


def test_the_lenient_verdict_lets_pass_what_good_poets_did():
    assert (check(WEI_CITY).strict, check(WEI_CITY).lenient) == (False, True)


def test_shuffled_verse_is_not_regular():
    chance = random.Random(1)
    characters = [character for character in SPRING_VIEW if character not in "，。"]
    passed = 0
    for _ in range(50):
        chance.shuffle(characters)
        passed += check("".join(characters)).strict

    assert passed == 0


def test_modern_books_judge_by_mandarin():
    """白 had an entering tone and is 阳平 now."""
    assert check(STORK_TOWER).lines[0].tones[0] == "仄"
    assert check(STORK_TOWER, book="中华新韵").lines[0].tones[0] == "平"


@pytest.mark.parametrize(
    "text", ["", "。", "hello world", "𠀀𪚥□" * 9, "\u0000\ud7ff", "一" * 500, "１２３４５，甲乙丙丁戊", "、\n" * 20]
)
@pytest.mark.parametrize("form", [None, "五绝", "七言排律", "对联"])
def test_nothing_that_can_be_typed_makes_it_fail(text, form):
    report = check(text, form)

    assert not report.strict
    assert report.as_data()["form"] == report.form


def test_compatibility_ideographs_are_read_as_what_they_stand_for():
    assert check(STORK_TOWER.replace("流", "\uf9ca")).strict


def test_an_unknown_form_is_named():
    with pytest.raises(ProsodyError, match="五绝, 七绝"):
        check(STORK_TOWER, "五言")


# --- couplets and patterns


@pytest.mark.parametrize(
    ("rule", "upper", "lower"),
    [
        ("couplet_length", "天增岁月人增寿", "春满乾坤福满堂前"),
        ("couplet_punctuation", "爆竹声声，辞旧岁", "桃符，处处迎新年"),
        ("couplet_upper_end", "春满乾坤福满门", "天增岁月人增寿"),
        ("couplet_lower_end", "天增岁月人增寿", "春满乾坤福满地"),
        ("same_character", "天增岁月人增寿", "天满乾坤福满门"),
        ("repetition", "天增岁月人增寿", "春满乾坤福到门"),
    ],
)
def test_a_couplet_that_breaks_a_rule_is_told_so(rule, upper, lower):
    report = check(f"{upper}\n{lower}", "对联")

    assert rule in {str(finding.rule) for finding in report.findings}
    assert not report.lenient


@pytest.mark.parametrize(
    "text",
    ["天增岁月人增寿，春满乾坤福满门", "天增岁月人增寿\n春满乾坤福满门", "爆竹声声，辞旧岁；桃符处处，迎新年"],
)
def test_couplets_are_recognised(text):
    report = check(text)

    assert report.form == "对联"
    assert report.strict


def test_parallel_lines_beat_lines_put_together_at_random():
    assert percentile("明月松间照", "清泉石上流") > 0.95
    assert percentile("明月松间照", "遍插茱萸少") < 0.6


def test_a_pattern_of_ones_own():
    pattern = Pattern.parse("中仄平平仄，平平仄仄平韵。中平平仄仄，中仄仄平平韵。")

    assert pattern.rhymes == (-1, 0, -1, 0)
    assert check(STORK_TOWER, pattern).strict
    found = check(STORK_TOWER.replace("流", "去"), pattern).findings
    assert [(str(finding.rule), finding.line, finding.position) for finding in found] == [("off_tone", 2, 5)]


@pytest.mark.parametrize("text", ["", "平平X", "韵平"])
def test_a_pattern_that_means_nothing_is_refused(text):
    with pytest.raises(ProsodyError, match="pattern"):
        Pattern.parse(text)


# --- ci

HUANXISHA = "一曲新词酒一杯，去年天气旧亭台。夕阳西下几时回。无可奈何花落去，似曾相识燕归来。小园香径独徘徊。"


@pytest.mark.parametrize("text", [HUANXISHA, f"浣溪沙\n{HUANXISHA}"])
def test_a_ci_is_checked_against_its_tune(text):
    """杯 and 台 are of two parts that Song poets mixed: lenient, not strict."""
    report = check(text, "浣溪沙")

    assert (report.form, report.book, report.lenient, report.tone_rate) == ("浣溪沙", "词林正韵", True, 1.0)
    assert [line.rhyme for line in report.lines] == [True, True, True, False, True, True]
    assert check(HUANXISHA.replace("台", "去"), "浣溪沙").tone_rate < 1


def test_a_ci_is_recognised_by_its_lengths_or_its_heading():
    assert check(f"浣溪沙\n{HUANXISHA}").form == "浣溪沙"
    assert (
        check(
            "箫声咽，秦娥梦断秦楼月。秦楼月，年年柳色，灞陵伤别。乐游原上清秋节，咸阳古道音尘绝。音尘绝，西风残照，汉家陵阙。"
        ).form
        in tunes()
    )


def test_every_form_of_a_tune_reads_and_has_a_rhyme():
    for forms in tunes().values():
        for form in forms:
            assert max(form.rhymes) >= 0


def test_a_tune_that_is_not_known_is_named_with_its_neighbours():
    with pytest.raises(ProsodyError, match="浣溪沙"):
        check(HUANXISHA, "浣溪纱啊")


def test_a_line_of_one_character_is_told_of_and_breaks_nothing():
    findings = check("三月南又照时江，月月照我月三山。江，月明岸又三二岸。", "七绝").findings

    assert [finding.line for finding in findings if finding.rule is Rule.LENGTH] == [3]
