"""Pairs to prefer from: each couplet's lower line against one that was spoilt."""

import json
from collections.abc import Iterable, Iterator, Sequence
from random import Random


def spoil(line: str, others: Sequence[str], random: Random) -> str:
    """Return *line* with its characters out of order, or more than half of them exchanged for some of *others*.

    It is never *line* itself.
    """
    characters = list(line)
    if random.random() < 0.5:
        for at in random.sample(range(len(line)), len(line) // 2 + 1):
            characters[at] = random.choice(random.choice(others))
    else:
        random.shuffle(characters)
    spoilt = "".join(characters)
    return spoilt if spoilt != line else line[1:] + line[0]


def as_pairs(couplets: Iterable[tuple[str, str]], instruction: str, random: Random) -> str:
    """Return upper and lower lines as a file of pairs, as LLaMA-Factory ranks them: a JSON array, a record a line."""
    given = list(couplets)
    others = [lower for _, lower in given]

    def records() -> Iterator[str]:
        for upper, lower in given:
            record = {"instruction": instruction, "input": upper, "chosen": lower}
            yield json.dumps({**record, "rejected": spoil(lower, others, random)}, ensure_ascii=False)

    return "[\n" + ",\n".join(records()) + "\n]\n"
