"""Are the scores of verse honest?  Genuine verse should score near one, the same characters shuffled near zero.

    python bench/prosody/scores.py ../shared/data [--poems N] [--seed S]

Prints a Markdown table: the mean of each score over N Tang poems of each form that the collection marks as regular,
over N couplets and N Song ci; over the same with their characters shuffled (the form is kept); over couplets with the
lower line of another; and how many answers a second one core scores.  The last line holds the plain tone rates of
shuffled verse: the mean, and what two of three do not exceed, which ``tone_rate`` takes for chance.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from tunesmith.data.conversation import Conversation, Message
from tunesmith.scoring import SCORERS
from tunesmith.scoring._verse import hold_against

FORMS = {"五绝": "五言绝句", "七绝": "七言绝句", "五律": "五言律诗", "七律": "七言律诗"}
OF_POEMS = ("verse_format", "tone_rate", "metre", "rhyme", "parallelism")
OF_COUPLETS = ("verse_format", "tone_rate", "couplet", "rhyme", "parallelism")
OF_CI = ("verse_format", "tone_rate", "metre", "rhyme", "ci")
Asked = tuple[Conversation, str]


def read(path: Path) -> list[dict]:
    """Return the records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asking(question: str) -> Conversation:
    """Return a conversation of one question."""
    return Conversation((Message("user", question),))


def shuffled(answer: str, chance: random.Random) -> str:
    """Return *answer* with its characters shuffled and its marks where they were."""
    marks = set("，。！？；、：\n")
    characters = [character for character in answer if character not in marks]
    chance.shuffle(characters)
    drawn = iter(characters)
    return "".join(character if character in marks else next(drawn) for character in answer)


def poems_of(poems: list[dict], form: str) -> list[Asked]:
    """Return the poems of one form, each with the prompt that asks for it."""
    question = asking(f"写一首{FORMS[form]}。")
    return [
        (question, "\n".join(f"{a}，{b}。" for a, b in zip(poem["lines_t"][::2], poem["lines_t"][1::2], strict=True)))
        for poem in poems
        if poem["form"] == form and poem["metre"] == "合律"
    ]


def couplets_of(couplets: list[dict]) -> list[Asked]:
    """Return the lower lines, each with the prompt that gives the upper one."""
    return [(asking(f"请对出下联。\n{pair['u']}"), pair["l"]) for pair in couplets if pair["ok"]]


def ci_of(texts: list[dict]) -> list[Asked]:
    """Return the ci of the commonest tune that the project knows, each with the prompt that names it."""
    return [(asking(f"用词牌《{ci['cipai']}》填一首词。"), "\n".join(ci["paras"])) for ci in texts if is_known(ci)]


def is_known(ci: dict) -> bool:
    """Say whether the project has the tune's pattern and the ci its lengths."""
    from tunesmith.prosody.ci import tunes
    from tunesmith.prosody.text import split_text

    lengths = tuple(map(len, split_text("\n".join(ci["paras"])).clauses))
    return any(tuple(map(len, pattern.lines)) == lengths for pattern in tunes().get(ci["cipai"], ()))


def measure(name: str, kinds: dict[str, list[Asked]], scores: Iterable[str]) -> None:
    """Print one row a score: the mean over each of *kinds*, and answers a second."""
    for score in map(SCORERS.parse, scores):
        hold_against.cache_clear()  # each score is timed as if it were alone
        means, began, count = [], time.perf_counter(), 0
        for asked in kinds.values():
            values = [score.score(conversation, answer).value for conversation, answer in asked]
            means.append(f"{mean(values):.3f}")
            count += len(values)
        rate = count / (time.perf_counter() - began)
        means += ["—"] * (3 - len(means))
        print(f"| {name} | `{score.type_name()}` | {' | '.join(means)} | {rate:,.0f} |", flush=True)


def plain_rate(asked: list[Asked]) -> str:
    """Return the plain tone rate of *asked*: the mean, and what two of three do not exceed."""
    score = SCORERS.parse({"type": "tone_rate", "above_chance": False})
    values = sorted(score.score(*each).value for each in asked)
    return f"{mean(values):.3f} ({values[len(values) * 2 // 3]:.3f})"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--poems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)

    def some(asked: list[Asked]) -> list[Asked]:
        return chance.sample(asked, min(options.poems, len(asked)))

    def shuffle_all(asked: list[Asked]) -> list[Asked]:
        return [(conversation, shuffled(answer, chance)) for conversation, answer in asked]

    rates = {}
    print("| verse | score | genuine | shuffled | another's lower line | answers/s |\n|---|---|---|---|---|---|")
    poems = read(options.data / "tang_jueju_lvshi.jsonl")
    for form in FORMS:
        genuine = some(poems_of(poems, form))
        broken = shuffle_all(genuine)
        measure(form, {"genuine": genuine, "shuffled": broken}, OF_POEMS)
        rates[form] = plain_rate(broken)
    genuine = some(couplets_of(read(options.data / "couplet_pairs.jsonl")))
    lowers = [answer for _, answer in genuine]
    chance.shuffle(lowers)
    others = [(asked, other) for (asked, own), other in zip(genuine, lowers, strict=True) if len(own) == len(other)]
    broken = shuffle_all(genuine)
    measure("couplets", {"genuine": genuine, "shuffled": broken, "others": others}, OF_COUPLETS)
    rates["couplets"] = plain_rate(broken)
    genuine = some(ci_of(read(options.data / "song_ci.jsonl")))
    broken = shuffle_all(genuine)
    measure("ci", {"genuine": genuine, "shuffled": broken}, OF_CI)
    rates["ci"] = plain_rate(broken)
    print(
        "\nplain tone rate of shuffled verse, mean (two of three below):",
        ", ".join(f"{name} {rate}" for name, rate in rates.items()),
    )


if __name__ == "__main__":
    main()
