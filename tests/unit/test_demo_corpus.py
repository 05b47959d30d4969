"""The demo's couplets: matched word for word and tone for tone, distinct, and the same on every run."""

import json
import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.files import hash_file
from tunesmith.run.demo_corpus import INSTRUCTION, couplets, generate_couplets, write_demo_data
from tunesmith.run.demo_corpus.corpus import PROSE, RHYMES, stream_verses
from tunesmith.run.demo_corpus.couplets import FIVE_CHARACTERS, SEVEN_CHARACTERS, read_pattern, stream_couplets
from tunesmith.run.demo_corpus.lexicon import GROUPS, LEXICON

# Every character that closes a line, by tone class in 平水韵 and in modern Mandarin alike.
LEVEL = set(
    "乡云交亭人佳光兰凉原吟啼园城堂堤塘天妍寒山峦川帆帘年幽庭开归微心怀情新明春晴曦村来杨杯林柔栏栖桃桐桥梅"
    "楼檐欢歌汀江沙河泉洲浓清游湖溪烟琴瓜甘田眠窗篱红舟船花芳芽苔苗茶荒莲蓉融诗辰醇钩门阳阶霄霞青风飞香鸣鸿麻"
)
OBLIQUE = set(
    "丽冷净卧去友句叶唱圃坐坞塔墨夜好妙嫩子客宿寺岫岭岸嶂己巷幌幕影径意戍戏户放日景暖曲月木枕柳案桨梦榻气水浦浴"
    "海淡渚渡漠照瓦砌碛碧秀稻穑穗笑管絮细绿网美翠至舍舞舫艇色艳草菜蔓语谷趣路远迹道酒醉里野院隘雁雅雨雪雾霭露静韵鸟"
)
CORPUS_PUNCTUATION = set("，。\n")

SAMPLE = generate_couplets(8_000, seed=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_demo_data(tmp_path_factory.mktemp("demo"))


def lines_of(sample):
    return [line for couplet in sample for line in (couplet.upper, couplet.lower)]


def read_lines(path):
    return [line for record in json.loads(path.read_text()) for line in (record["input"], record["output"])]


def test_the_lexicon_is_rich():
    pairs = {pair for group in LEXICON.values() for pair in group}

    assert len(pairs) >= 300
    assert len(LEXICON) >= 10


@pytest.mark.parametrize("group", LEXICON)
def test_words_of_a_group_are_of_one_length_and_share_no_character_with_their_partner(group):
    lengths = {len(word) for pair in LEXICON[group] for word in pair}
    shared = [pair for pair in LEXICON[group] if set(pair.level) & set(pair.oblique)]

    assert len(lengths) == 1
    assert shared == []


@pytest.mark.parametrize("group", LEXICON)
def test_every_word_has_one_to_four_partners_in_its_group(group):
    partners = Counter(word for pair in LEXICON[group] for word in pair)

    assert len(set(LEXICON[group])) == len(LEXICON[group])
    assert max(partners.values()) <= 4


@pytest.mark.parametrize("group", [name for name in LEXICON if ":" in name])
def test_words_that_close_a_line_have_an_unambiguous_tone(group):
    assert [pair for pair in LEXICON[group] if pair.level[-1] not in LEVEL or pair.oblique[-1] not in OBLIQUE] == []


def test_every_group_is_used():
    patterns = {name for text in FIVE_CHARACTERS + SEVEN_CHARACTERS for p in read_pattern(text) for name, _ in p.groups}
    prose = {name for name in GROUPS if any(f"{{{name}}}" in template for template in PROSE)}

    assert set(GROUPS) == patterns | prose | {"first_words"}


@pytest.mark.parametrize(("texts", "length"), [(FIVE_CHARACTERS, 5), (SEVEN_CHARACTERS, 7)])
def test_patterns_fill_lines_of_their_length(texts, length):
    found = [sum(len(LEXICON[name][0].level) for name, _ in p.groups) for text in texts for p in read_pattern(text)]

    assert len(texts) >= 6
    assert set(found) == {length}


def test_every_pattern_closes_by_some_cadence():
    assert [text for text in FIVE_CHARACTERS + SEVEN_CHARACTERS if not read_pattern(text)] == []


def test_lines_are_distinct():
    assert len(SAMPLE) == 8_000
    assert len(set(lines_of(SAMPLE))) == 16_000


def test_both_lines_are_of_one_length():
    assert {(len(c.upper), len(c.lower)) for c in SAMPLE} == {(5, 5), (7, 7)}


def test_upper_lines_end_oblique_and_lower_lines_level():
    assert [c for c in SAMPLE if c.upper[-1] not in OBLIQUE or c.lower[-1] not in LEVEL] == []


def test_no_character_is_in_both_lines():
    assert [c for c in SAMPLE if set(c.upper) & set(c.lower)] == []


def test_a_line_repeats_a_character_only_where_the_other_line_does_too():
    """Doubled words (叠字) stand at the same places in both lines."""

    def repeats(line):
        return [line.index(character) for character in line]

    doubled = [c for c in SAMPLE if len(set(c.upper)) < len(c.upper)]

    assert doubled
    assert [c for c in SAMPLE if repeats(c.upper) != repeats(c.lower)] == []
    assert [c for c in doubled if any(place - first > 1 for place, first in enumerate(repeats(c.upper)))] == []


def test_a_seed_gives_the_same_couplets_and_another_seed_others():
    assert generate_couplets(50, seed=5) == SAMPLE[:50]
    assert generate_couplets(50, seed=6) != SAMPLE[:50]


def test_asking_for_more_than_there_is_says_how_many_there_are(monkeypatch):
    monkeypatch.setattr(couplets, "PATTERNS", read_pattern("measure_cup wine_poem how_wine:平仄"))

    with pytest.raises(UserError, match=r"no more than about \d+ couplets; ask for fewer"):
        generate_couplets(1_000, seed=0)


def test_verses_rhyme_and_close_by_both_cadences():
    texts = stream_verses(stream_couplets(Random(1)))
    for _ in range(200):
        first, second = (half.split("，") for half in next(texts).rstrip("。").split("。"))

        assert [len(first[0])] * 4 == [len(line) for line in (*first, *second)]
        assert any(first[1][-1] in rhyme and second[1][-1] in rhyme for rhyme in RHYMES)
        assert first[1][-1] != second[1][-1]


def test_files_hold_what_was_asked_for(data):
    assert (data.corpus_lines, data.train_couplets, data.test_couplets) == (12_000, 4_000, 200)
    assert data.corpus_lines == len(data.corpus.read_text().splitlines())
    assert data.train_couplets * 2 == len(read_lines(data.train))
    assert data.test_couplets * 2 == len(read_lines(data.test))
    files = {"corpus.txt", "couplets_train.json", "couplets_test.json", "pairs_train.json", "pairs_test.json"}
    assert files == {p.name for p in data.corpus.parent.iterdir()}


def test_pairs_have_the_couplets_own_line_and_one_that_was_spoilt(data):
    for own, pairs in ((data.train, "pairs_train.json"), (data.test, "pairs_test.json")):
        given, made = (json.loads(path.read_text("utf-8")) for path in (own, data.corpus.parent / pairs))

        assert [(row["input"], row["output"]) for row in given] == [(row["input"], row["chosen"]) for row in made]
        assert all(row["chosen"] != row["rejected"] and len(row["chosen"]) == len(row["rejected"]) for row in made)


def test_couplet_files_are_alpaca_with_one_record_a_line(data):
    opening, *records, closing = data.test.read_text().splitlines()

    assert [opening, closing] == ["[", "]"]
    assert {(INSTRUCTION, 5), (INSTRUCTION, 7)} == {
        (record["instruction"], len(record["output"])) for record in map(json.loads, (r.rstrip(",") for r in records))
    }


def test_no_line_of_the_test_is_seen_before(data):
    """Not even as the end of a longer line: 黄莺穿细雨 within 柳外黄莺穿细雨."""
    seen = data.corpus.read_text() + data.train.read_text()

    assert [line for line in read_lines(data.test) if line in seen] == []


def test_no_couplet_to_fine_tune_on_is_in_the_corpus(data):
    corpus = set(data.corpus.read_text().replace("，", "\n").replace("。", "\n").splitlines())

    assert corpus & set(read_lines(data.train)) == set()


def test_the_corpus_is_plain_text_of_few_characters(data):
    corpus = data.corpus.read_text()

    assert INSTRUCTION not in corpus
    assert [c for c in set(corpus) - CORPUS_PUNCTUATION if not "\u4e00" <= c <= "\u9fff"] == []
    assert len(set(corpus)) < 900


def test_the_couplets_use_only_characters_of_the_corpus(data):
    assert set("".join(read_lines(data.train) + read_lines(data.test))) <= set(data.corpus.read_text())


def test_files_are_the_same_bytes_under_another_hash_seed(tmp_path):
    write = (
        "import sys; from pathlib import Path; from tunesmith.run.demo_corpus import write_demo_data;"
        "write_demo_data(Path(sys.argv[1]), seed=3, corpus_lines=300, train_couplets=50, test_couplets=20)"
    )
    for hash_seed in "12":
        subprocess.run(
            [sys.executable, "-c", write, tmp_path / hash_seed], env={"PYTHONHASHSEED": hash_seed}, check=True
        )

    first, second = ([hash_file(path) for path in sorted((tmp_path / name).iterdir())] for name in "12")
    assert first == second


@pytest.mark.parametrize("size", ["corpus_lines", "train_couplets", "test_couplets"])
def test_a_size_below_one_is_refused_by_name(tmp_path, size):
    with pytest.raises(UserError, match=f"{size} of at least 1, not 0"):
        write_demo_data(tmp_path, **{size: 0})

    assert list(tmp_path.iterdir()) == []
