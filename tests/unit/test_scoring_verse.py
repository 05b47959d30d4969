"""Scores of verse: canonical poems near one, their shuffles near zero, and every fault marked where it stands."""

import random
import time
from statistics import mean

import pytest

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.scoring import SCORERS
from tunesmith.scoring._asked import find_asked, form_in, upper_line
from tunesmith.scoring._places import find_places

# 李白, 王之涣, 王维, 柳宗元, 杜牧, 张继, 杜甫, 王维, 杜甫, 李商隐: all in the public domain for a thousand years
POEMS = {
    "五绝": [
        "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
        "功盖三分国，名成八阵图。江流石不转，遗恨失吞吴。",
        "绿蚁新醅酒，红泥小火炉。晚来天欲雪，能饮一杯无。",
    ],
    "七绝": [
        "远上寒山石径斜，白云生处有人家。停车坐爱枫林晚，霜叶红于二月花。",
        "月落乌啼霜满天，江枫渔火对愁眠。姑苏城外寒山寺，夜半钟声到客船。",
        "朝辞白帝彩云间，千里江陵一日还。两岸猿声啼不住，轻舟已过万重山。",
    ],
    "五律": [
        "国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。烽火连三月，家书抵万金。白头搔更短，浑欲不胜簪。",
        "空山新雨后，天气晚来秋。明月松间照，清泉石上流。竹喧归浣女，莲动下渔舟。随意春芳歇，王孙自可留。",
    ],
    "七律": [
        "风急天高猿啸哀，渚清沙白鸟飞回。无边落木萧萧下，不尽长江滚滚来。"
        "万里悲秋常作客，百年多病独登台。艰难苦恨繁霜鬓，潦倒新停浊酒杯。",
        "相见时难别亦难，东风无力百花残。春蚕到死丝方尽，蜡炬成灰泪始干。"
        "晓镜但愁云鬓改，夜吟应觉月光寒。蓬山此去无多路，青鸟殷勤为探看。",
    ],
}
ASKED = {"五绝": "写一首五言绝句。", "七绝": "请以秋为题写一首七绝", "五律": "作五言律诗一首", "七律": "寫一首七言律詩"}
ALL = [(form, poem) for form, poems in POEMS.items() for poem in poems]
YUXI = "一曲新词酒一杯，去年天气旧亭台。夕阳西下几时回。无可奈何花落去，似曾相识燕归来。小园香径独徘徊。"


def asking(question: str, reference: str = "") -> Conversation:
    return Conversation((Message("user", question), Message("assistant", reference)))


def score(name: str, question: str, answer: str, reference: str = "", **settings):
    return SCORERS.get(name)(**settings).score(asking(question, reference), answer)


def shuffle(answer: str, chance: random.Random) -> str:
    characters = [c for c in answer if c not in "，。"]
    chance.shuffle(characters)
    drawn = iter(characters)
    return "".join(c if c in "，。" else next(drawn) for c in answer)


@pytest.mark.parametrize("name", ["verse_format", "tone_rate", "metre", "rhyme"])
@pytest.mark.parametrize(("form", "poem"), ALL)
def test_canonical_poems_score_one(name, form, poem):
    assert score(name, ASKED[form], poem).value == 1.0


@pytest.mark.parametrize("name", ["tone_rate", "metre", "rhyme"])
def test_their_characters_shuffled_score_next_to_nothing(name):
    """The form is kept, so whatever is earned is earned by noise."""
    chance = random.Random(5)
    values = [score(name, ASKED[form], shuffle(poem, chance)).value for form, poem in ALL for _ in range(20)]

    assert mean(values) <= 0.05


@pytest.mark.parametrize("name", ["tone_rate", "metre"])
def test_one_wrong_tone_costs_and_a_second_costs_more(name):
    """A reward must be dense: each step towards the form pays."""
    poem, form = POEMS["七律"][0], "七律"
    once = poem.replace("沙白鸟", "沙青鸟", 1)
    twice = once.replace("多病", "多情", 1)
    values = [score(name, ASKED[form], each).value for each in (poem, once, twice)]

    assert 1.0 == values[0] > values[1] > values[2] > 0


def test_a_wrong_tone_is_marked_where_it_stands_in_both_languages():
    answer = "白日依山尽，\n黄河入海流。\n欲穷千里目，\n更上一层楼。"
    found = score("metre", "写一首五绝", answer.replace("黄河入海流", "黄河入天流"))
    (span,) = [s for s in found.spans if s.start == 10]

    assert answer[10] == "海"
    assert found.value < 1
    assert "line 2" in span.why
    assert "第2句第4字「天」" in span.chinese


@pytest.mark.parametrize(
    ("answer", "value", "why"),
    [
        ("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", 1.0, "五绝: lines of 5, 5, 5, 5"),
        ("白日依山尽黄河入海流欲穷千里目更上一层楼", 1.0, "五绝: lines of 5, 5, 5, 5"),
        ("白日依山尽，黄河入海流。欲穷千里目，更上一层。", 0.95**2 / 2, "lines of 5, 5, 5, 4, 五绝 has 5, 5, 5, 5"),
        ("白日依山尽，黄河入海流。", 0.5**2 / 2, "lines of 5, 5, 五绝 has 5, 5, 5, 5"),
        ("", 0.0, "the answer is empty"),
    ],
)
def test_the_format_is_lines_and_lengths(answer, value, why):
    assert score("verse_format", "写一首五绝", answer)[:2] == (pytest.approx(value), why)


def test_format_accuracy_knows_no_near_miss():
    answer = "白日依山尽，黄河入海流。欲穷千里目，更上一层。"

    assert score("verse_format", "写一首五绝", answer, partial=False).value == 0.0


def test_the_line_that_is_too_short_is_marked():
    answer = "白日依山尽，黄河入海流。欲穷千里目，更上一层。"
    (span,) = score("verse_format", "写一首五绝", answer).spans

    assert answer[span.start : span.end] == "更上一层"
    assert (span.why, span.chinese) == ("4 characters, 5 wanted", "4字，应5字")


@pytest.mark.parametrize(
    ("question", "form"),
    [
        ("写一首五言绝句", "五绝"),
        ("來一首七言絕句", "七绝"),
        ("以月为题，七律，押先韵", "七律"),
        ("作一首五言排律", "五言排律"),
        ("用词牌《浣溪沙》写离别", "浣溪沙"),
        ("填一首如梦令", "如梦令"),
        ("请对出下联。\n春风吹绿柳", "对联"),
        ("上联：春风吹绿柳", "对联"),
        ("Write about the tune of 浣溪沙", "浣溪沙"),
        ("写一首关于江南的诗", ""),
        ("What is the weather like?", ""),
        ("", ""),
    ],
)
def test_the_form_is_read_from_the_prompt(question, form):
    assert form_in(question) == form


@pytest.mark.parametrize(
    ("question", "upper"),
    [
        ("请对出下联。\n春风吹绿柳", "春风吹绿柳"),
        ("请对出下联：春风吹绿柳", "春风吹绿柳"),
        ("上联：春风吹绿柳。请对下联。", "春风吹绿柳"),
        ("上联是“一去二三里，烟村四五家”，请对", "一去二三里，烟村四五家"),
        ("请为「春风吹绿柳」对下联", "春风吹绿柳"),
        ("写一副春联", ""),
    ],
)
def test_the_upper_line_is_read_from_the_prompt(question, upper):
    assert upper_line(question) == upper


def test_setting_goes_before_prompt_and_prompt_before_reference():
    poem, couplet = POEMS["七绝"][0], "春风吹绿柳，夜雨洒红花。"

    assert find_asked("五律", "写一首七绝", couplet).form == "五律"
    assert find_asked("auto", "写一首七绝", couplet).form == "七绝"
    assert find_asked("auto", "写点什么", poem).form == "七绝"
    assert find_asked("auto", "写点什么", "今天，天气真的很好。").lengths == ((2, 6),)
    assert find_asked("auto", "写点什么", "") is None


def test_a_pattern_of_ones_own_is_a_form():
    settings = {"form": "中仄平平仄，平平仄仄平韵。"}

    assert score("tone_rate", "?", "白日依山尽，黄河入海流。", **settings).value == 1.0
    assert score("metre", "?", "黄河来海流，白日依山尽。", **settings).value < 0.1


@pytest.mark.parametrize("form", ["七言绝句体", "浣溪沙沙", "平平X", ""])
def test_an_unknown_form_is_refused_when_the_recipe_is_read(form):
    with pytest.raises(ValueError, match="form"):
        SCORERS.parse({"type": "metre", "form": form})


def test_an_unknown_rhyme_book_is_refused_when_the_recipe_is_read():
    with pytest.raises(ValueError, match="平水韵"):
        SCORERS.parse({"type": "rhyme", "book": "广韵"})


def test_modern_rhymes_are_heard_with_a_modern_book():
    poem = "春来江水绿如油，两岸青山望远楼。日暮渔舟归去晚，一轮明月照沙洲。"
    modern = poem.replace("沙洲", "高坡")

    assert score("rhyme", "七绝", poem).value == 1.0
    assert score("rhyme", "七绝", modern, book="中华新韵").value < 1.0


def test_lost_characters_and_letters_earn_nothing():
    """They fit every pattern, so a model that writes them would be paid for nothing."""
    lost = "□□□□□，□□□□□。□□□□□，□□□□□。"

    for name in ("tone_rate", "metre", "rhyme", "parallelism"):
        assert score(name, "写一首五绝", lost).value <= 0.01
        assert score(name, "写一首五绝", lost.replace("□", "x")).value <= 0.01


def test_one_line_of_four_does_not_earn_the_metre():
    assert score("metre", "写一首五绝", "白日依山尽。").value < 0.05
    assert score("tone_rate", "写一首五绝", "白日依山尽。").value < 0.1
    assert score("rhyme", "写一首五绝", "黄河入海流。").value == 0.0


def test_lenient_lets_pass_what_good_poets_did():
    """Wang Wei's couplets are not joined (失粘)."""
    poem = "渭城朝雨浥轻尘，客舍青青柳色新。劝君更尽一杯酒，西出阳关无故人。"

    assert score("metre", "七绝", poem, verdict="lenient").value == 1.0
    assert 0 < score("metre", "七绝", poem, verdict="strict").value < 1.0
    assert score("metre", "七绝", poem, verdict="strict", partial=False).value == 0.0


@pytest.mark.parametrize(
    ("lower", "value", "marked"),
    [
        ("夜雨洒红花", 1.0, []),
        ("春雨洒红花", 0.5, ["春"]),
        ("夜雨洒红叶", (1 / 3) ** 2, ["叶"]),
        ("夜雨洒红", 0.1 * 0.8**2, []),
    ],
)
def test_a_couplet_keeps_length_ends_and_characters_apart(lower, value, marked):
    found = score("couplet", "请对出下联。\n春风吹绿柳", lower)

    assert found.value == pytest.approx(value)
    assert [lower[s.start : s.end] for s in found.spans] == marked


def test_a_couplet_of_clauses_has_the_upper_lines_skeleton():
    question = "上联：一去二三里，烟村四五家"
    same, other = "亭台六七座，八九十枝花", "亭台六七，座八九十枝花"

    assert score("verse_format", question, same).value == 1.0
    assert score("verse_format", question, other).value < 1.0
    assert score("couplet", question, other).value == score("couplet", question, same).value / 2


def test_a_couplet_may_be_written_whole():
    good, swapped = "春风吹绿柳，夜雨洒红花。", "夜雨洒红花，春风吹绿柳。"

    assert score("couplet", "写一副春联", good).value == 1.0
    assert score("couplet", "写一副春联", swapped).value <= (1 / 3) ** 2
    assert score("couplet", "写一副春联", "春风吹绿柳").value <= 0.1


def test_a_repetition_that_the_upper_line_does_not_have_is_marked_in_the_lower_one():
    lower = "红花夜雨红"
    found = score("couplet", "请对出下联。\n春风吹绿柳", lower)

    assert "红" in [lower[s.start : s.end] for s in found.spans]


def test_parallelism_tells_a_lower_line_from_anothers_and_pays_no_echo():
    question = "请对出下联。\n两岸晓烟杨柳绿"
    own, other = score("parallelism", question, "一园春雨杏花红"), score("parallelism", question, "西出阳关无故人")

    assert own.value >= 0.9
    assert other.value <= 0.2
    assert score("parallelism", question, "两岸晓烟杨柳绿").value == 0.0
    assert score("parallelism", question, "一园春雨杏花红", above_chance=False).value > 0.99


def test_a_ci_is_held_against_its_tune():
    question = "用词牌《浣溪沙》填一首词"
    chance = random.Random(3)
    found = score("ci", question, YUXI)

    assert found.value >= 0.9
    assert "浣溪沙" in found.why
    assert mean(score("ci", question, shuffle(YUXI, chance)).value for _ in range(20)) <= 0.05
    assert score("ci", question, YUXI[:-8]).value < found.value
    assert score("ci", question, f"浣溪沙\n{YUXI}").value == found.value
    assert score("ci", "写一首五绝", POEMS["五绝"][0]).value == 0.0
    assert score("ci", "随便写", YUXI, tune="浣溪沙").value == found.value


def test_a_thousand_answers_a_second():
    """Four rewards for each of 300 different answers; the check itself is made once an answer."""
    chance = random.Random(1)
    rewards = [SCORERS.parse(name) for name in ("verse_format", "tone_rate", "metre", "rhyme")]
    answers = [shuffle(POEMS["七绝"][0], chance) for _ in range(300)]
    asked = asking(ASKED["七绝"])
    for reward in rewards:
        reward.score(asked, POEMS["七绝"][1])  # reads the tables
    began = time.process_time()
    for answer in answers:
        for reward in rewards:
            reward.score(asked, answer)

    assert len(answers) / (time.process_time() - began) > 400  # a slow machine's half; 1,500 and more are usual


@pytest.mark.parametrize(
    ("text", "lines", "places"),
    [
        ("白日，依山", ["白日", "依山"], [(0, 1), (3, 4)]),
        ("题\n白日 依山", ["白日依山"], [(2, 3, 5, 6)]),
        ("白日", ["黄河"], [()]),
        ("", ["白"], [()]),
        ("日日白日", ["日", "白日"], [(0,), (2, 3)]),
    ],
)
def test_characters_are_found_in_the_text_they_came_from(text, lines, places):
    assert list(find_places(text, lines)) == places


def test_novelty_without_training_data_says_what_to_name():
    with pytest.raises(UserError, match="corpus: "):
        score("novelty", "?", "白日依山尽")
