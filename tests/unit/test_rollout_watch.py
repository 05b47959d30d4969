"""One rhyme for all prompts is seen, whatever else the poems say; other texts and usual runs raise no alarm."""

import json
import random

import pytest

from tunesmith.run.rollout_watch import RolloutWatch, rhyme_of, rhymes_by_prompt

# words of five groups of level rhymes, as they stand in the book of rhymes
RHYMES = {"东": "东红风中空", "阳": "阳香光长霜", "尤": "秋楼舟流愁", "真": "春人新尘身", "先": "天年烟前眠"}
COMMON = "山水云月花鸟江雨竹松"
PROMPTS, ANSWERS = 8, 4


def verse(dice: random.Random, word: str, length: int = 5) -> str:
    """Four lines of chance, the last of which ends in *word*."""
    lines = ["".join(dice.choices(COMMON, k=length)) for _ in range(4)]
    return "，".join(lines)[:-1] + word + "。"


def step(dice: random.Random, groups: str) -> tuple[list[str], list[int], list[int]]:
    """The answers of a step, each in one of *groups* of rhymes: texts, tokens, prompts."""
    texts = [verse(dice, dice.choice(RHYMES[dice.choice(groups)])) for _ in range(PROMPTS * ANSWERS)]
    return texts, [24] * len(texts), [at // ANSWERS for at in range(len(texts))]


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("床前明月光，疑是地上霜。举头望明月，低头思故乡。", "七陽"),
        ("两个黄鹂鸣翠柳\n一行白鹭上青天\n窗含西岭千秋雪\n门泊东吴万里船", "一先"),
        ("雲對雨，雪對風，晚照對晴空", "一東"),
        ("床前明月光", None),
        ("The moon is bright, and the frost is white.", None),
        ("唐朝的诗人们常常在夜里望着月亮想念家乡，这首诗就是一个很好的例子。", None),
        ("好的，答案是 42。", None),
        ("", None),
    ],
)
def test_the_rhyme_is_that_of_the_last_word_of_a_verse(text, group):
    """Of verses alone: two lines or more, of Chinese characters, none longer than a ci's."""
    assert rhyme_of(text) == group


def test_one_rhyme_for_all_raises_its_alarm_once():
    """Five usual steps, then all poems in one group: seen as soon as most of the last steps are so."""
    dice, watch = random.Random(1), RolloutWatch([])
    alarms, shares = [], []
    for at in range(12):
        measured, found = watch.look(at, *step(dice, "".join(RHYMES) if at < 5 else "东"))
        alarms += found
        shares.append(measured["same_rhyme"])

    assert max(shares[:5]) < 0.6
    assert shares[-1] == 1
    (alarm,) = alarms
    assert "of the verses end in one rhyme group (一東)" in alarm
    assert alarm.endswith("at first: one rhyme for all")


@pytest.mark.parametrize("groups", ["东阳尤真先", "东"])
def test_usual_runs_raise_none(groups):
    """Neither where rhymes stay as different as they were, nor where one was all there was from the start."""
    for seed in range(20):
        dice, watch = random.Random(seed), RolloutWatch([])

        assert not any(watch.look(at, *step(dice, groups))[1] for at in range(15))


def test_answers_to_one_prompt_count_as_one():
    """A prompt may ask for a rhyme: of one prompt a step, more steps are looked at before anything is said."""
    dice, watch = random.Random(2), RolloutWatch([])
    steps = [step(dice, "".join(RHYMES) if at < 16 else "东") for at in range(40)]
    alarms = [watch.look(at, texts, tokens, [0] * len(texts))[1] for at, (texts, tokens, _) in enumerate(steps)]
    (raised,) = (at for at, each in enumerate(alarms) if each)

    assert rhymes_by_prompt(steps[-1][0], [0] * PROMPTS * ANSWERS) == {"一東": pytest.approx(1)}
    assert 16 + 6 <= raised < 16 + 12
    assert len(watch.last_rhymes) == 16


def test_other_texts_are_not_measured():
    watch = RolloutWatch([])
    texts = [f"Answer {number} is what you asked for. {number * 7} of them." for number in range(16)]
    measured, alarms = watch.look(1, texts, [9] * 16, range(16))

    assert "same_rhyme" not in measured
    assert alarms == []


def test_a_resumed_run_raises_what_it_would_have_raised():
    """The state goes through JSON as through a checkpoint; what is missing in an older one is begun anew."""
    dice, watch = random.Random(3), RolloutWatch([])
    steps = [step(dice, "".join(RHYMES) if at < 5 else "真") for at in range(12)]
    whole = [watch.look(at, *each) for at, each in enumerate(steps)]
    first, second = RolloutWatch([]), RolloutWatch([])
    for at, each in enumerate(steps[:6]):
        first.look(at, *each)
    second.restore(json.loads(json.dumps(first.state())))
    again = [second.look(at, *each) for at, each in enumerate(steps[6:], start=6)]
    old = {name: value for name, value in first.state().items() if "rhymes" not in name}
    second.restore(old)

    assert again == whole[6:]
    assert sum(len(alarms) for _, alarms in again) == 1
    assert second.look(6, *steps[6])[1] == []
