"""Make ``data/cleaning/scripts.txt``: which traditional characters each simplified one stands for.

Run as ``python bench/prosody/build_scripts.py ../shared/data/tang_jueju_lvshi.jsonl`` where OpenCC is installed: its
character tables (Apache-2.0) are asked one character at a time, for the characters of Guangyun and all that is written
for them.  Of several traditional characters the one that stands first is the commonest in Tang verse, counted where the
file gives a poem in both scripts; every sixth poem is left out, to measure with.
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import opencc

from tunesmith.prosody.readings import guangyun

OUT = Path(__file__).parents[2] / "src" / "tunesmith" / "data" / "cleaning" / "scripts.txt"

# share of the uses from which on the commonest is taken without asking
_SURE = 0.95


def count_uses(path: Path) -> Counter[tuple[str, str]]:
    """Return (simplified, traditional) -> how often a poem has the one in one script and the other in the other."""
    uses: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        record = json.loads(line)
        if number % 6:
            for simple, traditional in zip(record["lines"], record["lines_t"], strict=True):
                uses.update(zip(simple, traditional, strict=False))
    return uses


def main() -> None:
    data = guangyun()
    to_simplified, to_traditional = opencc.OpenCC("t2s"), opencc.OpenCC("s2t")
    characters = set(data.rhymes_of) | set(data.same) | set(data.stands_for)
    characters |= {source for sources in data.stands_for.values() for source in sources}
    sources: dict[str, set[str]] = defaultdict(set)
    for character in characters:
        simple = to_simplified.convert(character)
        if len(simple) == 1 and simple != character:
            sources[simple].add(character)
    uses = count_uses(Path(sys.argv[1]))
    lines = []
    for simple, found in sorted(sources.items()):
        usual = to_traditional.convert(simple)
        known = found | ({simple} if usual == simple or simple in data.rhymes_of else set())
        known |= {usual} if len(usual) == 1 else set()
        order = sorted(known, key=lambda each: (-uses[simple, each], each != usual, each))
        total = sum(uses[simple, each] for each in order)
        doubtful = len(order) > 1 and uses[simple, order[0]] < _SURE * max(1, total)
        lines.append(simple + "".join(order) + "?" * doubtful)
    head = "# a simplified character, the traditional one it mostly stands for, the others, ? if in doubt; version 1\n"
    head += "# made by bench/prosody/build_scripts.py from the character tables of OpenCC (Apache-2.0)\n"
    OUT.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    print(len(lines), sum(len(line) > 2 for line in lines))


if __name__ == "__main__":
    main()
