"""Learn from regulated verse how alive each reading of a character is, and write usage.txt.

    python bench/prosody/build_usage.py ../shared/data/tang_jueju_lvshi.jsonl

Every poem of regular shape is fitted to the four line types with the tones that Guangyun leaves no choice about; where
the fit is faultless, the tone that the pattern demands of the other characters is counted.  Poems with one fault and
rhyme words out of an otherwise agreed group show readings that Guangyun lacks; they are added where they are frequent.
Only counts leave the corpus, no text.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.prosody.books import PINGSHUI, TONES
from tunesmith.prosody.metre import Metre, find_metre
from tunesmith.prosody.readings import BOTH, COMMON, LEVEL, OBLIQUE, RARE, Guangyun, Readings

DATA = Path(__file__).parents[2] / "src/tunesmith/prosody/data"
# level, rising and departing rhymes that differ by tone only
_SERIES = tuple(
    series
    for row in (
        "東董送 鍾腫用 江講絳 支紙寘 脂旨至 之止志 微尾未 魚語御 虞麌遇 模姥暮 齊薺霽 佳蟹卦 皆駭怪 灰賄隊",
        "咍海代 真軫震 諄準稕 文吻問 欣隱焮 元阮願 魂混慁 痕很恨 寒旱翰 桓緩換 刪潸諫 山產襇 先銑霰 仙獮線",
        "蕭篠嘯 宵小笑 肴巧效 豪晧号 歌哿箇 戈果過 麻馬禡 陽養漾 唐蕩宕 庚梗映 耕耿諍 清靜勁 青迥徑 蒸拯證",
        "登等嶝 尤有宥 侯厚候 幽黝幼 侵寑沁 覃感勘 談敢闞 鹽琰豔 添忝㮇 嚴儼釅 咸豏陷 銜檻鑑 凡范梵 冬湩宋",
    )
    for series in row.split()
)

# a price above remarks such as a small twist and below any fault
_FAULT = 5
# fewest times that a word must be seen, and how many times what a character does by itself counts beside that
_FEWEST, _TRUST = 3, 2.0


@dataclass
class Counts:
    """What the corpus demands."""

    traditional: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """(character, level?) -> times demanded in faultless poems."""
    simplified: Counter[tuple[str, bool]] = field(default_factory=Counter)
    against: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """(character, level?) -> times demanded where Guangyun lacks that tone, in poems with no other fault."""
    beside: Counter[tuple[str, int, bool]] = field(default_factory=Counter)
    """(two characters in a row, place of the one demanded, level?) -> times; one character for the end of a line."""
    rhymed: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(character, Pingshui group that the poem's other rhyme words agree on) -> times."""


def count(poems: Iterable[dict], data: Guangyun) -> Counts:
    """Return the counts of *poems* (records with ``lines`` and ``lines_t``)."""
    readings = Readings(PINGSHUI, simplified=False, data=data)
    counts = Counts()
    for poem in poems:
        lines = poem["lines_t"]
        if len({len(line) for line in lines}) != 1 or len(lines[0]) not in (5, 7) or len(lines) % 2:
            continue
        tones = [readings.tones(line) for line in lines]
        metre = find_metre(tones)
        if metre.cost < _FAULT:
            _count_demands(counts, poem, metre, tones)
        else:
            _count_against(counts, poem, metre)
        _count_rhymes(counts, lines, metre, readings)
    return counts


def _count_demands(counts: Counts, poem: dict, metre: Metre, tones: list[str]) -> None:
    """Count each tone that a faultless poem could not do without."""
    for number, fit in enumerate(metre.lines):
        line = tones[number]
        aligned = zip(poem["lines_t"][number], poem["lines"][number], fit.pattern, strict=False)
        for place, (traditional, simplified, tone) in enumerate(aligned):
            if tone == BOTH:
                continue
            if line[place] == BOTH:
                fine = [
                    find_metre([*tones[:number], line[:place] + letter + line[place + 1 :], *tones[number + 1 :]]).cost
                    < _FAULT
                    for letter in (LEVEL, OBLIQUE)
                ]
                if all(fine):
                    continue
                tone = LEVEL if fine[0] else OBLIQUE
            counts.traditional[traditional, tone == LEVEL] += 1
            counts.simplified[simplified, tone == LEVEL] += 1
            if line[place] == BOTH:
                for text in {poem["lines_t"][number], poem["lines"][number]}:
                    counts.beside[text[place : place + 2], 0, tone == LEVEL] += 1
                    if place:
                        counts.beside[text[place - 1 : place + 1], 1, tone == LEVEL] += 1


def _count_against(counts: Counts, poem: dict, metre: Metre) -> None:
    """Count the character of a poem's only fault: perhaps Guangyun lacks a reading."""
    wrong = [(number, position) for number, fit in enumerate(metre.lines) for position in fit.wrong]
    ends = [(number, 0) for _, number in metre.breaks]
    tail = [
        (number, len(fit.pattern) - 5 + fit.shape.position) for number, fit in enumerate(metre.lines) if _tolerated(fit)
    ]
    faults = [*wrong, *ends, *tail]
    if len(faults) != 1:
        return
    number, position = faults[0]
    fit, line = metre.lines[number], poem["lines_t"][number]
    if position:
        demanded = fit.pattern[position - 1] == LEVEL
        counts.against[line[position - 1], demanded != _tolerated(fit)] += 1
    elif metre.breaks[0][0] in ("upper_end", "rhyme_tone"):
        counts.against[line[-1], not fit.level_end] += 1


def _tolerated(fit) -> bool:
    return fit.shape.cost > 5


def _count_rhymes(counts: Counts, lines: Sequence[str], metre: Metre, readings: Readings) -> None:
    words = [line[-1] for line in lines[1::2]]
    if metre.cost > 25 or len(words) < 2:
        return
    bits = [readings.groups(word, level=True) for word in words]
    for place, word in enumerate(words):
        others = -1
        for other, having in enumerate(bits):
            if other != place:
                others &= having
        if others > 0 and not others & (others - 1):
            counts.rhymed[word, others.bit_length() - 1] += 1


def additions(counts: Counts, data: Guangyun) -> dict[str, list[str]]:
    """Return character -> rhymes that verse uses and Guangyun lacks."""
    groups_of: dict[str, Counter[int]] = defaultdict(Counter)
    for (character, group), times in counts.rhymed.items():
        groups_of[character][group] += times
    heading = {group: next(h for h, g in PINGSHUI.members.items() if g == group) for group in range(30)}
    added: dict[str, list[str]] = defaultdict(list)
    for character, groups in sorted(groups_of.items()):
        have = {PINGSHUI.group(rhyme) for rhyme in data.rhymes(character, simplified=False)}
        for group, times in groups.items():
            # a word that the other rhyme words agree on without it, often, is in that group
            if group not in have and times >= 4 and times >= 0.2 * groups.total():
                added[character].append(heading[group])
    for (character, level), times in sorted(counts.against.items()):
        agreed = counts.traditional[character, True] + counts.traditional[character, False]
        rhymes = data.rhymes(character, simplified=False)
        tones = {TONES[rhyme] == "平" for rhyme in [*rhymes, *added.get(character, ())]}
        if level in tones or times < 4 or times < 0.04 * (agreed + times):
            continue
        for rhyme in rhymes:
            series = next((series for series in _SERIES if rhyme in series), None)
            if series is not None:
                added[character].append(series[0] if level else series[2])
                break
    return added


def usage_lines(poems: Sequence[dict]) -> list[str]:
    """Return the lines of ``usage.txt``: added rhymes first, then counts of the characters that have a choice."""
    bare = Guangyun(usage=())
    added = additions(count(poems, bare), bare)
    lines = [f"{character}+{''.join(dict.fromkeys(rhymes))}" for character, rhymes in sorted(added.items())]
    data = Guangyun(usage=lines)
    counts = count(poems, data)
    everything = {character for character, _ in [*counts.traditional, *counts.simplified]}
    for character in sorted(everything):
        tones = {TONES[rhyme] == "平" for rhyme in data.rhymes(character, simplified=True)}
        if len(tones) == 2:
            numbers = [table[character, level] for table in (counts.traditional, counts.simplified) for level in (1, 0)]
            lines.append(f"{character} {' '.join(map(str, numbers))}")
    return [*lines, *word_lines(counts, lines)]


def word_lines(counts: Counts, lines: list[str]) -> list[str]:
    """Return what neighbours say: ``word:place letter``, where it is not what the character says by itself."""
    scripts = [Readings(PINGSHUI, simplified=simplified, data=Guangyun(usage=lines)) for simplified in (False, True)]
    found = []
    for word, place in sorted({(word, place) for word, place, _ in counts.beside}):
        level, oblique = counts.beside[word, place, True], counts.beside[word, place, False]
        if level + oblique < _FEWEST:
            continue
        for readings in scripts:
            weights = {reading.level: reading.weight for reading in readings.of(word[place])}
            if len(weights) < 2:
                continue
            share = (level + _TRUST * weights[True]) / (level + oblique + _TRUST)
            letter = LEVEL if share > 1 - RARE else OBLIQUE if share < RARE else BOTH
            if len(word) == 1 and letter != BOTH:
                continue  # ends of lines that rhyme and of those that do not: they only widen
            by_itself = readings.classes[ord(word[place])]
            # rare by itself and possible here: only where the neighbours make it common
            if letter != by_itself and not (letter == BOTH and (by_itself in "pz" or min(share, 1 - share) < COMMON)):
                found.append(f"{word}:{place}{letter}")
                break
    return found


def main() -> None:
    """Write the file."""
    poems = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    lines = usage_lines(poems)
    head = [
        "character, then + and rhymes that verse uses and Guangyun lacks, or how often regulated verse demands the",
        "level and the oblique tone in traditional and in simplified text; two characters (one: end of line),",
        "then the place of the one whose tone they settle, and the tone (中: both)",
        "made by bench/prosody/build_usage.py; version 1",
        f"source: counts over {len(poems):,} Tang poems of regular shape (public domain)",
    ]
    (DATA / "usage.txt").write_text("".join(f"# {line}\n" for line in head) + "\n".join(lines) + "\n", "utf-8")
    print(len(lines), "lines:", *(f"{sum(mark in line for line in lines)} with {mark}" for mark in "+ :"))


if __name__ == "__main__":
    main()
