"""Measure the checker on verse that it did not learn from, and on verse with one rule broken.

    python bench/prosody/measure.py ../shared/data [--poems N]

Prints JSON lines: the textbook scansions, the share of Tang poems accepted by form, shuffled poems accepted, flipped
tones caught, one broken rule at a time found with reason and line, parallelism on pairs set aside, poems a second.
For the flips and the broken rules the usage of readings is learnt from the other half of the poems.
"""

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from build_parallelism import is_held_out
from build_usage import usage_lines

from tunesmith.prosody import FORMS, check
from tunesmith.prosody.books import PINGSHUI
from tunesmith.prosody.parallelism import parallelism
from tunesmith.prosody.readings import Guangyun, Readings
from tunesmith.prosody.regulated import check_regulated
from tunesmith.prosody.report import Report

Poem = dict
OPPOSITE = {"平": "仄", "仄": "平"}


def read(path: Path) -> list[dict]:
    """Return the records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def scansions(poems: list[Poem]) -> dict:
    """Compare with textbook scansions, character by character."""
    same = total = 0
    for poem in poems:
        for line, wanted in zip(check("\n".join(poem["lines"])).lines, poem["scansion"], strict=True):
            same += sum(map(str.__eq__, line.tones, wanted))
            total += len(wanted)
    return {"measure": "textbook scansions", "same": same, "of": total}


def accepted(poems: list[Poem], key: str) -> dict:
    """Return the share of poems accepted, by form, through the public door."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for poem in poems:
        report = check("\n".join(poem[key]))
        counts[poem["form"]].update(all=1, strict=report.strict, lenient=report.lenient)
    shares = {
        form: [round(100 * count[verdict] / count["all"], 2) for verdict in ("strict", "lenient")]
        for form, count in counts.items()
    }
    return {"measure": "accepted, % (strict, lenient)", "text": key, **shares}


def shuffled(poems: list[Poem], chance: random.Random) -> dict:
    """Return how many poems with all their characters shuffled are accepted."""
    passed = Counter()
    for poem in poems:
        characters = list("".join(poem["lines_t"]))
        chance.shuffle(characters)
        size = len(poem["lines_t"][0])
        lines = ["".join(characters[start : start + size]) for start in range(0, len(characters), size)]
        report = check("\n".join(lines))
        passed.update(strict=report.strict, lenient=report.lenient)
    return {"measure": "shuffled accepted", **passed, "of": len(poems)}


class Breaker:
    """Breaks one rule of a regulated poem."""

    def __init__(self, poems: list[Poem], readings: Readings, chance: random.Random) -> None:
        self.readings, self.chance = readings, chance
        frequency = Counter(character for poem in poems for line in poem["lines_t"] for character in line)
        self.pools: dict[tuple, list[str]] = defaultdict(list)
        for character, times in frequency.items():
            tones = readings.tones(character)
            if tones in OPPOSITE and times >= 20:
                self.pools[tones].append(character)
                groups = readings.groups(character, level=True)
                if tones == "平" and groups & (groups - 1) == 0:
                    self.pools["平", groups.bit_length() - 1].append(character)

    def report(self, lines: list[str]) -> Report:
        """Check with the readings that were learnt elsewhere."""
        size = Counter(map(len, lines)).most_common(1)[0][0]
        form = next(form for form in FORMS.values() if (form.length, form.lines) == (size, len(lines)))
        return check_regulated(lines, form, self.readings)

    def replace(self, lines: list[str], line: int, position: int, character: str) -> list[str]:
        """Return the lines with one character (0-based) replaced."""
        text = lines[line]
        return [*lines[:line], text[:position] + character + text[position + 1 :], *lines[line + 1 :]]

    def flip(self, lines: list[str], line: int, position: int) -> list[str] | None:
        """Give a character of one sure tone another of the opposite sure tone."""
        tone = self.readings.tones(lines[line][position])
        if tone not in OPPOSITE:
            return None
        return self.replace(lines, line, position, self.chance.choice(self.pools[OPPOSITE[tone]]))

    def breaks(self) -> Iterator[tuple[str, set[str], Callable]]:
        """Yield name, rules that name the fault, and a function that makes it: -> (lines, 0-based line) or None."""
        yield "beat flipped", {"off_tone"}, self.beat
        yield "rhyme word oblique", {"rhyme_tone"}, self.rhyme_tone
        yield "upper line ends level", {"upper_end"}, self.upper_end
        yield "rhyme of another group", {"off_rhyme", "neighbour_rhyme"}, self.off_rhyme
        yield "rhyme word repeated", {"repeated_rhyme"}, self.repeated
        yield "three level tones", {"three_level"}, self.three_level
        yield "lone level", {"lone_level"}, self.lone_level
        yield "second couplet turned", {"adhesion"}, self.adhesion
        yield "lower line turned", {"counter", "adhesion"}, self.counter
        yield "character lost", {"length"}, self.length

    def beat(self, lines: list[str]) -> tuple[list[str], int] | None:
        line = self.chance.randrange(len(lines))
        position = self.chance.randrange(1, len(lines[0]) - 1, 2)
        broken = self.flip(lines, line, position)
        return broken and (broken, line)

    def rhyme_tone(self, lines: list[str]) -> tuple[list[str], int] | None:
        line = self.chance.randrange(1, len(lines), 2)
        broken = self.flip(lines, line, -1 % len(lines[0]))
        return broken and (broken, line)

    def upper_end(self, lines: list[str]) -> tuple[list[str], int] | None:
        line = self.chance.randrange(2, len(lines), 2)
        broken = self.flip(lines, line, len(lines[0]) - 1)
        return broken and (broken, line)

    def off_rhyme(self, lines: list[str]) -> tuple[list[str], int] | None:
        line = self.chance.randrange(1, len(lines), 2)
        if len(lines) == 4 and not self.report(lines).lines[0].rhyme:
            return None  # of two rhyme words nobody can say which is the wrong one
        group = self.chance.randrange(30)
        mine = self.readings.groups(lines[line][-1], level=True)
        if mine >> group & 1 or not self.pools["平", group]:
            return None
        return self.replace(lines, line, len(lines[0]) - 1, self.chance.choice(self.pools["平", group])), line

    def repeated(self, lines: list[str]) -> tuple[list[str], int] | None:
        line = self.chance.randrange(3, len(lines), 2)
        return self.replace(lines, line, len(lines[0]) - 1, lines[line - 2][-1]), line

    def _shape(self, lines: list[str], core: str, place: int) -> tuple[list[str], int] | None:
        """Flip the character at *place* of the last five where a line reads *core*."""
        numbers = list(range(len(lines)))
        self.chance.shuffle(numbers)
        for line in numbers:
            if self.readings.tones(lines[line])[-5:] == core:
                broken = self.flip(lines, line, len(lines[0]) - 5 + place)
                return broken and (broken, line)
        return None

    def three_level(self, lines: list[str]) -> tuple[list[str], int] | None:
        return self._shape(lines, "平仄仄平平", 2) or self._shape(lines, "仄仄仄平平", 2)

    def lone_level(self, lines: list[str]) -> tuple[list[str], int] | None:
        return self._shape(lines, "平平仄仄平", 0)

    def adhesion(self, lines: list[str]) -> tuple[list[str], int] | None:
        """Put a couplet of the other start in the place of the last one, with its rhyme out of the question."""
        start = len(lines) - 2
        size = len(lines[0])
        level = self.report(lines).lines[start].tones[1] == "平"
        cores = ("仄仄平平仄", "平平仄仄平") if level == (size == 5) else ("平平平仄仄", "仄仄仄平平")
        made = []
        for core in cores:
            prefix = "" if size == 5 else {"仄仄": "平平", "平平": "仄仄"}[core[:2]]
            made.append("".join(self.chance.choice(self.pools[tone]) for tone in prefix + core))
        made[1] = made[1][:-1] + lines[start + 1][-1]
        return [*lines[:start], *made], start

    def counter(self, lines: list[str]) -> tuple[list[str], int] | None:
        """Turn the last line over: it then starts as its upper line does."""
        core = self.report(lines).lines[-1].tones[-5:]
        turned = {"仄": "平平仄仄平", "平": "仄仄仄平平"}.get(core[1])
        if turned is None:
            return None
        prefix = "" if len(lines[0]) == 5 else {"仄仄": "平平", "平平": "仄仄"}[turned[:2]]
        made = "".join(self.chance.choice(self.pools[tone]) for tone in prefix + turned)
        return [*lines[:-1], made[:-1] + lines[-1][-1]], len(lines) - 1

    def length(self, lines: list[str]) -> tuple[list[str], int] | None:
        line = self.chance.randrange(len(lines))
        return [*lines[:line], lines[line][:-2] + lines[line][-1], *lines[line + 1 :]], line


def broken_rules(breaker: Breaker, poems: list[Poem]) -> Iterator[dict]:
    """Yield for each way to break a poem how often it is rejected, and for the right reason in the right line."""
    sound = [poem["lines_t"] for poem in poems if breaker.report(poem["lines_t"]).strict]
    for name, rules, break_poem in breaker.breaks():
        counts = Counter()
        for lines in sound:
            made = break_poem(lines)
            if made is None:
                continue
            report = breaker.report(made[0])
            named = [finding for finding in report.findings if finding.rule in rules]
            counts.update(
                of=1,
                rejected=not report.strict,
                rejected_leniently=not report.lenient,
                reason=bool(named),
                reason_and_line=any(finding.line == made[1] + 1 for finding in named),
            )
        yield {"measure": "one rule broken", "rule": name, **counts}


def flips(breaker: Breaker, poems: list[Poem]) -> dict:
    """Invert the tone of the character at a beat: one of two common readings stays what it was, and goes unnoticed."""
    caught = total = 0
    for poem in poems:
        lines = poem["lines_t"]
        report = breaker.report(lines)
        if not report.strict:
            continue
        line = breaker.chance.randrange(len(lines))
        position = breaker.chance.randrange(1, len(lines[0]) - 1, 2)
        want = report.lines[line].pattern[position]
        if want == "中":
            continue
        letter = breaker.readings.tones(lines[line][position])
        flipped = {"平": "仄", "仄": "平", "p": "z", "z": "p"}.get(letter, letter)
        like = breaker.pools.get(flipped)
        total += 1
        if like and not breaker.report(breaker.replace(lines, line, position, breaker.chance.choice(like))).strict:
            caught += 1
    return {"measure": "flipped tones caught", "caught": caught, "of": total, "%": round(100 * caught / total, 2)}


def area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the area under the ROC curve, ties counted half."""
    both = np.concatenate([positive, negative])
    _, place, count = np.unique(both, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - count / 2 + 0.5)[place]
    number = len(positive)
    return float((rank[:number].sum() - number * (number + 1) / 2) / number / len(negative))


def pairs(records: list[dict], chance: random.Random) -> Iterator[dict]:
    """Yield how well parallelism tells the true lower line from one of the same length, on pairs set aside."""
    held_out = [record for record in records if is_held_out(record)]
    for name, chosen in (("all", held_out), ("regular", [record for record in held_out if record["ok"]])):
        lower = {length: [r["l"] for r in chosen if len(r["l"]) == length] for length in (5, 7)}
        true = np.array([parallelism(r["u"], r["l"]) for r in chosen])
        other = np.array([parallelism(r["u"], chance.choice(lower[len(r["u"])])) for r in chosen])
        yield {"measure": "parallelism AUC", "pairs": name, "of": len(chosen), "auc": round(area(true, other), 4)}


def speed(poems: list[Poem]) -> dict:
    """Return poems a second, reports with their data included."""
    texts = ["，".join(poem["lines"]) for poem in poems[:6000]]
    began = time.perf_counter()
    for text in texts:
        check(text)
    bare = len(texts) / (time.perf_counter() - began)
    began = time.perf_counter()
    for text in texts:
        json.dumps(check(text).as_data(), ensure_ascii=False)
    return {
        "measure": "poems a second",
        "check": round(bare),
        "with JSON": round(len(texts) / (time.perf_counter() - began)),
    }


def main() -> None:
    """Print all measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--poems", type=int, default=10**9, help="judge on the first N only")
    options = parser.parse_args()
    chance = random.Random(0)
    poems = read(options.data / "tang_jueju_lvshi.jsonl")
    chosen = poems[: options.poems]

    def show(value: dict) -> None:
        print(json.dumps(value, ensure_ascii=False), flush=True)

    show(scansions(read(options.data / "gold_textbook_scansions.jsonl")))
    show(speed(chosen))
    show(accepted(chosen, "lines_t"))
    show(accepted(chosen, "lines"))
    show(shuffled(chosen, chance))
    learnt = Readings(PINGSHUI, simplified=False, data=Guangyun(usage=usage_lines(poems[::2])))
    breaker = Breaker(poems, learnt, chance)
    show(flips(breaker, chosen[1::2]))
    for result in broken_rules(breaker, chosen[1::2][:3000]):
        show(result)
    for result in pairs(read(options.data / "couplet_pairs.jsonl"), chance):
        show(result)


if __name__ == "__main__":
    main()
