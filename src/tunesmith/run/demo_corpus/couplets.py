"""Couplets composed from the lexicon by line patterns, so that both lines match word for word and tone for tone."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from math import prod
from random import Random

from tunesmith.core.errors import UserError
from tunesmith.run.demo_corpus.lexicon import LEXICON, Cadence

# The upper line's tones in a regulated seven-character couplet; five-character lines have the last five of them.
UPPER_TONES: dict[Cadence, str] = {"平仄": "平平仄仄平平仄", "仄仄": "仄仄平平平仄仄"}

# Each pattern names one word group after another.  The last one decides the cadence: a group with a cadence in its
# name closes lines of that cadence only; a bare name whose groups come in both cadences closes either.
FIVE_CHARACTERS = (
    "after land how_land",  # 雨后青山秀，风前绿水清
    "where_plant spring_flower how_flower",
    "where_plant flower_leaf colour:仄仄",  # 堤边芳草绿，陌上杏花红
    "where_wood wood_bird sing:平仄",
    "where_water water_bird swim:平仄",
    "where_person poet poet_does",
    "where_person rustic rustic_does",
    "counted_land spring_air how_spring",
    "counted_land autumn_air how_autumn",
    "measure_cup wine_poem how_wine:平仄",  # 半卷新诗妙，三杯老酒香
    "wood_bird fly_through sky",  # 黄莺穿细雨，紫燕掠斜阳
    "wood_bird fly_to place",
    "water_bird fly_through sky",
    "water_bird fly_to shore",
    "light shine place",
    "sound drift indoor",
    "plant wear dew",
    "spring_wind brush spring_leaf:仄仄",
    "autumn_wind sweep autumn_leaf:仄仄",
    "mountain_water greet guest",
    "mountain_water hold glow",
    "art lend feeling",
    "poet enjoy enjoyed",
    "frontier fill frontier_place",
    "poet poet_act",  # 诗人游远岫，隐士泛轻舟
    "rustic rustic_act",
    "doubled_land land_end",  # 碧草青青路，垂杨袅袅堤
    "doubled_water water_end",
)
SEVEN_CHARACTERS = (
    "where_wood wood_bird fly_through sky",
    "where_wood wood_bird fly_to place",
    "where_water water_bird fly_through sky",
    "where_water water_bird fly_to shore",
    "season_bird goose_swallow fly_through sky",  # 春来紫燕穿新雨，秋去孤鸿掠晚霞
    "season season_plant wear_season season_sky:平仄",
    "where_plant plant wear dew",
    "where_light light shine place",
    "where_sound sound drift indoor",
    "where_study art lend feeling",
    "where_person poet enjoy enjoyed",
    "where_frontier frontier fill frontier_place",
    "lately spring_wind brush spring_leaf:仄仄",
    "lately autumn_wind sweep autumn_leaf:仄仄",
    "measure mountain_water greet guest",  # 一江碧水迎归雁，两岸青山送远帆
    "measure mountain_water hold glow",
    "measure_cup wine_poem invite friend:平仄",  # 一壶浊酒邀明月，半卷新诗寄故人
    "measure_cup wine_poem toast enjoyed:仄仄",
    "often festive announce festival",
    "where_plant doubled_land land_end",  # 溪边碧草青青路，陌上垂杨袅袅堤
    "lately doubled_water water_end",
    "doubled veil place",  # 轻烟淡淡迷芳草，细雨蒙蒙锁绿杨
    "lately spring_wind flower_leaf colour:仄仄",  # 昨夜东风杨柳绿，今朝细雨杏花红
    "where_plant spring_wind flower_leaf colour:仄仄",
    "often spring_wind spring_flower how_flower",
    "land likeness ages how_land",  # 青山似画千年秀，绿水如诗万古清
    "after land view how_view",
    "measure mountain_water view how_view",
    "building hour song how_sound",
    "leisure poet poet_act",
    "leisure rustic rustic_act",
)

# Far more failures in a row than chance explains: the patterns have nothing new left.
MOST_FAILURES = 5_000


@dataclass(frozen=True, slots=True)
class Couplet:
    """An upper line (上联) and the lower line (下联) that answers it; *cadence* is how the upper line closes."""

    upper: str
    lower: str
    cadence: Cadence


@dataclass(frozen=True, slots=True)
class Pattern:
    """The word groups of a line in order, each with whether the upper line takes its level word."""

    groups: tuple[tuple[str, bool], ...]
    cadence: Cadence


def read_pattern(text: str) -> list[Pattern]:
    """Return the pattern written in *text* once for each cadence that its last group can close."""
    *others, last = text.split()
    found = []
    for cadence, tones in UPPER_TONES.items():
        closing = last if last in LEXICON else f"{last}:{cadence}"
        if closing not in LEXICON or (":" in closing and not closing.endswith(cadence)):
            continue
        places = len(tones)
        groups: list[tuple[str, bool]] = []
        for name in reversed((*others, closing)):
            groups.append((name, tones[places - 1] == "平"))
            places -= len(LEXICON[name][0].level)
        found.append(Pattern(tuple(reversed(groups)), cadence))
    return found


PATTERNS = [pattern for text in FIVE_CHARACTERS + SEVEN_CHARACTERS for pattern in read_pattern(text)]


def compose(pattern: Pattern, random: Random) -> Couplet | None:
    """Return one couplet of *pattern*, or nothing where the words drawn would repeat a character."""
    upper, lower = [], []
    for name, takes_level in pattern.groups:
        pair = random.choice(LEXICON[name])
        upper.append(pair.level if takes_level else pair.oblique)
        lower.append(pair.oblique if takes_level else pair.level)
    # A doubled word (青青) repeats its own character by design, so each word counts a character once.
    characters = [character for word in (*upper, *lower) for character in dict.fromkeys(word)]
    if len(set(characters)) < len(characters):
        return None
    return Couplet("".join(upper), "".join(lower), pattern.cadence)


def stream_couplets(random: Random) -> Iterator[Couplet]:
    """Yield couplets of which no line occurs twice; raise :class:`UserError` when nothing new can be found."""
    # By its square root a pattern with many words comes up more often, and one with few is not soon used up.
    weights = [prod(len(LEXICON[name]) for name, _ in pattern.groups) ** 0.5 for pattern in PATTERNS]
    cumulative_weights = list(accumulate(weights))
    seen: set[str] = set()
    num_found = num_failures = 0
    while num_failures < MOST_FAILURES:
        (pattern,) = random.choices(PATTERNS, cum_weights=cumulative_weights)
        couplet = compose(pattern, random)
        if couplet is None or couplet.upper in seen or couplet.lower in seen:
            num_failures += 1
            continue
        seen.update((couplet.upper, couplet.lower))
        num_found, num_failures = num_found + 1, 0
        yield couplet
    raise UserError(f"the demo's lexicon holds no more than about {num_found:,} couplets; ask for fewer")


def generate_couplets(count: int, seed: int) -> list[Couplet]:
    """Return *count* couplets, every line distinct, the same ones for the same *seed*."""
    return list(islice(stream_couplets(Random(seed)), count))
