"""The demo's files: text to pretrain on, and couplets to fine-tune on and to be examined with."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_text
from tunesmith.run.demo_corpus.couplets import Couplet, stream_couplets
from tunesmith.run.demo_corpus.lexicon import LEXICON, Cadence
from tunesmith.run.demo_corpus.pairs import as_pairs

INSTRUCTION = "请对出下联。"

# What may end the second and fourth line of one verse: level tones that rhyme by the old books and to a modern ear.
RHYMES = (
    "蓉浓鸿风桐融红",
    "窗江凉荒乡光芳杨香堂阳霜塘",
    "篱曦栖啼堤溪",
    "飞归微杯",
    "怀来开苔",
    "人春醇辰新云村门",
    "心琴吟林",
    "兰栏欢峦寒山原园妍眠烟莲田年川泉天船",
    "交霄桥苗桃",
    "歌河",
    "芽瓜茶沙霞花麻佳",
    "情清明城鸣晴庭汀青亭",
    "洲游柔楼幽舟钩",
    "帘檐帆",
)

# Prose about the same things; a name in braces is a word group, of which either side may come.
PROSE = (
    "{where_plant}有{spring_flower}，{where_wood}有{wood_bird}。",
    "{spring_wind}过后，{where_plant}的{spring_flower}都开了。",
    "{autumn_wind}一夜，{where_water}的{water_bird}不知飞到哪里去了。",
    "{poet}住在{where_person}，每天看{mountain_water}，听{song}。",
    "{rustic}从{where_person}走过，身后是{place:仄仄}。",
    "{hour}，{building}里很静，远远传来{song}。",
    "{light}落在{place:仄仄}，也落在{place:平仄}。",
    "{wood_bird}飞过{place:仄仄}，停在{where_wood}。",
    "{water_bird}飞过{shore:仄仄}，停在{where_water}。",
    "{poet}爱{sound}，{rustic}爱{sound}。",
    "春天有{spring_air}，秋天有{autumn_air}。",
    "{building}不大，门前种着{plant}，屋后就是{land}。",
    "从{place:仄仄}到{place:平仄}，一路都是{plant}。",
    "{poet}来看{poet}，两个人坐在{where_person}，说起{land}。",
    "{where_study}放着{art}，{where_plant}开着{spring_flower}。",
    "城外是{frontier_place:仄仄}，只看见{frontier}。",
    "{after}，{land}比平日更好看。",
)

TWO_CHARACTER_GROUPS = [name for name, pairs in LEXICON.items() if len(pairs[0].level) == 2]

# The mixture of corpus.txt, in parts of it.
MIXTURE = {"couplet": 6, "line": 1, "verse": 2, "prose": 2, "primer": 1}


@dataclass(frozen=True, slots=True)
class DemoData:
    """The files that were written and how much each holds."""

    corpus: Path
    train: Path
    test: Path
    corpus_lines: int
    train_couplets: int
    test_couplets: int


def write_demo_data(
    folder: Path, seed: int = 0, *, corpus_lines: int = 12_000, train_couplets: int = 4_000, test_couplets: int = 200
) -> DemoData:
    """Write ``corpus.txt``, ``couplets_train.json`` and ``couplets_test.json`` into *folder*, the same for a *seed*.

    The three share no line, and no line of the test occurs inside a longer line of the other two.
    ``pairs_train.json`` and ``pairs_test.json`` have the couplets with spoilt lower lines beside theirs.  Raise
    :class:`UserError` for a size below one, and for more couplets than the lexicon holds.
    """
    sizes = {"corpus_lines": corpus_lines, "train_couplets": train_couplets, "test_couplets": test_couplets}
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"the demo's data need {name} of at least 1, not {size}")
    random = Random(seed)
    couplets = stream_couplets(random)
    test = list(islice(couplets, test_couplets))
    held_out = {line for couplet in test for line in (couplet.upper, couplet.lower)}
    fresh = (c for c in couplets if not (occurs_in(held_out, c.upper) or occurs_in(held_out, c.lower)))
    train = list(islice(fresh, train_couplets))
    corpus = (line for line in stream_corpus(fresh, random) if not occurs_in(held_out, line))
    data = DemoData(folder / "corpus.txt", folder / "couplets_train.json", folder / "couplets_test.json", **sizes)
    write_text(data.corpus, "".join(f"{line}\n" for line in islice(corpus, corpus_lines)))
    write_text(data.train, as_alpaca(train))
    write_text(data.test, as_alpaca(test))
    for name, part in (("train", train), ("test", test)):
        lines = [(couplet.upper, couplet.lower) for couplet in part]
        write_text(folder / f"pairs_{name}.json", as_pairs(lines, INSTRUCTION, Random(f"{seed} {name}")))
    return data


def occurs_in(lines: set[str], text: str) -> bool:
    """Return whether *text* holds one of *lines*, all of five or seven characters."""
    return any(text[start : start + length] in lines for length in (5, 7) for start in range(len(text) - length + 1))


def as_alpaca(couplets: Iterable[Couplet]) -> str:
    """Return *couplets* as an Alpaca file: a JSON array with one record a line."""
    records = ({"instruction": INSTRUCTION, "input": couplet.upper, "output": couplet.lower} for couplet in couplets)
    return "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"


def stream_corpus(couplets: Iterator[Couplet], random: Random) -> Iterator[str]:
    """Yield lines to pretrain on, mixed by chance: couplets, single lines, verses, prose and primers."""
    verses = stream_verses(couplets)
    while True:
        (kind,) = random.choices(list(MIXTURE), list(MIXTURE.values()))
        match kind:
            case "couplet":
                yield as_sentence(next(couplets))
            case "line":
                couplet = next(couplets)
                yield random.choice((couplet.upper, couplet.lower))
            case "verse":
                yield next(verses)
            case "prose":
                yield write_prose(random)
            case "primer":
                yield write_primer(random)


def as_sentence(couplet: Couplet) -> str:
    """Return the couplet as running text."""
    return f"{couplet.upper}，{couplet.lower}。"


def stream_verses(couplets: Iterator[Couplet]) -> Iterator[str]:
    """Yield four-line verses: two couplets that rhyme and whose tones follow on (粘), on one line of text."""
    waiting: dict[tuple[int, str, Cadence], Couplet] = {}
    for couplet in couplets:
        length, ending = len(couplet.lower), couplet.lower[-1]
        rhyme = next((rhyme for rhyme in RHYMES if ending in rhyme), ending)
        # Tones follow on from one couplet to the next where the second closes by the other cadence.
        other: Cadence = "仄仄" if couplet.cadence == "平仄" else "平仄"
        first = waiting.pop((length, rhyme, other), None)
        if first is not None and first.lower[-1] != ending:
            yield as_sentence(first) + as_sentence(couplet)
        else:
            waiting[length, rhyme, couplet.cadence] = couplet


def write_prose(random: Random) -> str:
    """Return a sentence of plain prose about a scene."""

    def draw(name: re.Match[str]) -> str:
        return random.choice(random.choice(LEXICON[name[1]]))

    return re.sub(r"\{(.+?)\}", draw, random.choice(PROSE))


def write_primer(random: Random) -> str:
    """Return words and their answers as children learn them (声律启蒙): 云对雨，雪对风，晚照对晴空."""
    short = random.sample(LEXICON["first_words"], 2)
    long = [random.choice(LEXICON[group]) for group in random.sample(TWO_CHARACTER_GROUPS, 3)]
    first, second, third, fourth, fifth = (f"{pair.oblique}对{pair.level}" for pair in (*short, *long))
    return f"{first}，{second}，{third}。{fourth}，{fifth}。"
