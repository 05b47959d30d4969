"""Derive the patterns of ci tunes from Song ci, and write ci.txt.

    python bench/prosody/build_ci.py ../shared/data/song_ci.jsonl [--compare ../shared/data/ci_patterns.jsonl]

The ci of one tune with the same lengths of clauses make a form, if there are at least four.  A place is level or
oblique where nine in ten of the characters with one common reading are, else free.  Two clauses rhyme where their last
characters share a part of Cilin zhengyun in seven of ten ci.  --compare prints how far a hand-made table agrees.
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

from tunesmith.prosody.books import CILIN
from tunesmith.prosody.readings import Readings, readings_in
from tunesmith.prosody.text import split_text

DATA = Path(__file__).parents[2] / "src/tunesmith/prosody/data"
FEWEST, SURE, RHYMING = 4, 0.9, 0.7


def tone_pattern(poems: list[str], readings: Readings) -> str:
    """Return the tone that most poems, texts of equal length, have at each place."""
    pattern = ""
    for column in zip(*(readings.tones(poem) for poem in poems), strict=True):
        counts = Counter({"p": "平", "z": "仄"}.get(letter, letter) for letter in column)
        level, oblique = counts["平"], counts["仄"]
        share = level / (level + oblique) if level + oblique else 0.5
        pattern += "平" if share >= SURE else "仄" if share <= 1 - SURE else "中"
    return pattern


def rhyme_groups(clauses: list[tuple[str, ...]], readings: Readings) -> list[int]:
    """Return for each clause the number of the rhyme it ends in, -1 for none."""
    size = len(clauses[0])
    ends = [
        [readings.groups(clause[-1], level=True) | readings.groups(clause[-1], level=False) for clause in poem]
        for poem in clauses
    ]
    rhyme = [-1] * size
    groups = 0
    for place in range(size):
        # the nearest earlier clause that this one rhymes with, most often
        shares = [(sum(bool(end[place] & end[before]) for end in ends) / len(ends), before) for before in range(place)]
        share, before = max(shares, default=(0.0, -1))
        if share < RHYMING:
            continue
        if rhyme[before] < 0:
            rhyme[before] = groups
            groups += 1
        rhyme[place] = rhyme[before]
    return rhyme


def write_pattern(pattern: str, lengths: tuple[int, ...], rhyme: list[int]) -> str:
    """Return a form as :class:`tunesmith.prosody.Pattern` reads it."""
    # a new rhyme is written 换 where it first comes; a rhyme that comes back after another has no sign, and keeps none
    text, start, last = "", 0, -1
    for length, group in zip(lengths, rhyme, strict=True):
        mark = ""
        if group > last:
            mark = "换" if last >= 0 else "韵"
            last = group
        elif group == last and group >= 0:
            mark = "韵"
        text += pattern[start : start + length] + mark + "，"
        start += length
    return text.rstrip("，") + "。"


def forms(records: list[dict]) -> list[tuple[str, int, str]]:
    """Return (tune, number of ci, pattern), the commonest form of each tune first."""
    readings = readings_in(CILIN, simplified=True)
    by_shape: dict[str, dict[tuple[int, ...], list[tuple[str, ...]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        clauses = split_text("\n".join(record["paras"])).clauses
        by_shape[record["cipai"]][tuple(map(len, clauses))].append(clauses)
    found = []
    # the commonest tune first: lengths that several tunes share are taken for its own
    for tune, shapes in sorted(by_shape.items(), key=lambda item: (-sum(map(len, item[1].values())), item[0])):
        if len(tune) == 1:
            continue  # a name cut short in the corpus
        for lengths, poems in sorted(shapes.items(), key=lambda shape: -len(shape[1])):
            if len(poems) >= FEWEST and len(lengths) > 1:
                pattern = tone_pattern(["".join(poem) for poem in poems], readings)
                found.append((tune, len(poems), write_pattern(pattern, lengths, rhyme_groups(poems, readings))))
    return found


def other_names(records: list[dict], known: set[str]) -> dict[str, str]:
    """Return other name -> tune, for names that no tune of the corpus has and only one tune claims."""
    own = {record["cipai"] for record in records}
    claims: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name in record.get("alias", ()):
            claims[name].add(record["cipai"])
    return {
        name: next(iter(having))
        for name, having in sorted(claims.items())
        if len(having) == 1 and name not in own and having <= known and " " not in name
    }


def compare(found: list[tuple[str, int, str]], path: Path) -> dict:
    """Count places and clause ends where a hand-made table says the same, for forms of equal length."""
    table = {}
    for line in path.read_text("utf-8").splitlines():
        tune = json.loads(line)
        table |= dict.fromkeys(tune["names"], tune["forms"])
    counts: Counter = Counter()
    for tune, number, pattern in found:
        tones = [letter for letter in pattern if letter in "平仄中"]
        same = [form for form in table.get(tune, ()) if len(form["p"]) == len(tones)]
        counts.update(forms=1, ci=number)
        if not same:
            continue
        ends, place = set(), 0
        for letter in pattern:
            place += letter in "平仄中"
            if letter in "韵换":
                ends.add(place - 1)
        best = max(same, key=lambda form: sum(a == b for a, b in zip(form["p"], tones, strict=True)))
        both = [(a, b) for a, b in zip(best["p"], tones, strict=True) if "中" not in (a, b)]
        counts.update(
            forms_in_table=1,
            ci_in_table=number,
            bound=len(both),
            bound_same=sum(a == b for a, b in both),
            rhymes_theirs=len(best["rhyme"]),
            rhymes_ours=len(ends),
            rhymes_shared=len(ends & set(best["rhyme"])),
        )
    return dict(counts)


def main() -> None:
    """Write the file, or compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    records = [json.loads(line) for line in options.corpus.read_text("utf-8").splitlines()]
    found = forms(records)
    if options.compare:
        print(json.dumps(compare(found, options.compare)))
        return
    names = other_names(records, {tune for tune, _, _ in found})
    head = [
        "tune, number of Song ci it was derived from, pattern; or another name, = and the tune",
        f"made by bench/prosody/build_ci.py from {len(records):,} Song ci (public domain); version 1",
    ]
    lines = [f"# {line}" for line in head]
    lines += [f"{tune} {number} {pattern}" for tune, number, pattern in found]
    lines += [f"{name} = {tune}" for name, tune in names.items()]
    (DATA / "ci.txt").write_text("\n".join(lines) + "\n", "utf-8")
    covered = sum(number for _, number, _ in found)
    print(f"{len({tune for tune, _, _ in found})} tunes, {len(found)} forms, {covered:,} ci of {len(records):,}")


if __name__ == "__main__":
    main()
