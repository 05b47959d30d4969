"""A reward that works: a nano model learns quatrains from Tang and Song poets, then GRPO teaches it tones and rhymes.

    python bench/reinforce_verse.py --data /work/shared/data --output runs/verse

Writes the data (a poem's title is the prompt, the poem the answer), carries out ``recipes/online/1-quatrains.yaml``
and ``recipes/online/2-tones-and-rhymes.yaml``, and prints a table of held-out prompts before and after: tones, rhymes,
lines that stand in the training data, Distinct-2.  ``--only quatrains`` and ``--only reward`` do one half, ``--only
table`` shows what was found.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.core.events import Event
from tunesmith.core.files import read_jsonl
from tunesmith.data.conversation import Conversation, Message
from tunesmith.prosody import check
from tunesmith.recipe.read import read_recipe
from tunesmith.run.rollout_watch import lines_of
from tunesmith.run.train import train
from tunesmith.scoring import SCORERS
from tunesmith.scoring._asked import form_in

RECIPES = Path(__file__).parents[1] / "recipes" / "online"
FORMS = {"五绝": ("五绝",), "七绝": ("七绝",), "五律": ("五绝", "五绝"), "七律": ("七绝", "七绝")}
HELD_OUT, HALVES = 300, 12_000
LONGEST_TITLE = 8
TABLE = ("tone_rate", "rhyme", "verse_format", "repetition", "distinct_n")


def as_row(form: str, title: str, lines: list[str]) -> dict[str, str]:
    first, second, third, fourth = lines
    return {"prompt": f"{form}：{title}", "completion": f"{first}，{second}。{third}，{fourth}。"}


def write_data(source: Path, folder: Path, seed: int = 0) -> None:
    """Write quatrains, and halves of regulated poems, which are quatrains too; hold those of some titles out."""
    whole: list[dict[str, str]] = []
    halves: list[dict[str, str]] = []
    for line in (source / "tang_jueju_lvshi.jsonl").open(encoding="utf-8"):
        poem = json.loads(line)
        title = poem["title"].split(" ")[0][:LONGEST_TITLE]
        for part, form in enumerate(FORMS[poem["form"]]):
            lines = poem["lines"][4 * part : 4 * part + 4]
            if title and len(lines) == 4 and len({len(each) for each in lines}) == 1:
                (halves if len(FORMS[poem["form"]]) > 1 else whole).append(as_row(form, title, lines))
    draw = random.Random(seed)
    draw.shuffle(whole)
    draw.shuffle(halves)
    held, kept = whole[:HELD_OUT], whole[HELD_OUT:]
    titles = {row["prompt"] for row in held}
    train_rows = [row for row in [*kept, *halves[:HALVES]] if row["prompt"] not in titles]
    draw.shuffle(train_rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train_rows), ("held_out", held)):
        # titles that name a ci tune (竹枝词) would be scored as one
        clear = [row for row in rows if form_in(row["prompt"]) == row["prompt"].partition("：")[0]]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in clear)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def measure(rows: list[dict[str, Any]], model: str, learnt: set[str]) -> dict[str, float]:
    """Return the scores of a model's answers, how it rhymes, and the share of its lines that were learnt by heart."""
    talks = [Conversation(tuple(Message(m["role"], m["content"]) for m in row["prompt"])) for row in rows]
    answers = [row["answers"][model] for row in rows]
    found = {name: SCORERS.parse(name).summary(talks, answers) for name in TABLE}
    plain = SCORERS.parse({"type": "tone_rate", "above_chance": False})
    shares = [plain.score(talk, answer).value for talk, answer in zip(talks, answers, strict=True)]
    found["right tones, chance included"] = sum(shares) / len(shares)
    found["poems with every tone right"] = sum(share == 1 for share in shares) / len(shares)
    forms = [talk.prompt()[-1].content.partition("：")[0] for talk in talks]
    groups = Counter(check(answer, form).rhyme_group for answer, form in zip(answers, forms, strict=True))
    found["poems in the commonest rhyme"] = groups.most_common(1)[0][1] / len(answers)
    lines = [line for answer in answers for line in lines_of(answer)]
    found["copied lines"] = sum(line in learnt for line in lines) / max(1, len(lines))
    return found


def show_table(folder: Path, data: Path, console: Console) -> bool:
    """Print what changed on held-out prompts; return whether tones and rhymes rose by ten points, and nothing fell."""
    rows = json.loads((folder / "evaluation.json").read_text("utf-8"))["rows"]
    answers = (json.loads(line)["completion"] for line in (data / "train.jsonl").open(encoding="utf-8"))
    learnt = {line for answer in answers for line in lines_of(answer)}
    before, after = measure(rows, "base", learnt), measure(rows, "tuned", learnt)
    table = Table(f"{len(rows)} held-out prompts", "SFT", "after the reward", "points")
    for name in before:
        table.add_row(name, f"{before[name]:.1%}", f"{after[name]:.1%}", f"{100 * (after[name] - before[name]):+.1f}")
    console.print(table)
    kept = after["distinct_n"] >= 0.8 * before["distinct_n"] and after["copied lines"] <= 0.05
    return kept and all(after[name] - before[name] >= 0.1 for name in ("tone_rate", "rhyme"))


def write_picture(folder: Path, path: Path) -> None:
    """Draw what tones and rhymes earned in each step, and on held-out prompts, as an SVG file."""
    lines = read_jsonl(folder / "metrics.jsonl")
    width, height, left, top = 640, 260, 44, 16
    last = max(line["step"] for line in lines)

    def place(step: float, value: float) -> str:
        return f"{left + step / last * (width - left - 16):.1f},{top + (1 - value) * (height - top - 40):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(0, share).split(",")
        parts.append(
            f'<path d="M{x},{y}H{width - 16}" stroke="#ddd"/><text x="6" y="{float(y) + 4}">{share:.0%}</text>'
        )
    for row, (name, colour) in enumerate((("tone_rate", "#2563eb"), ("rhyme", "#dc2626"))):
        steps = [(x["step"], x[f"reward_{name}"]) for x in lines if x["kind"] == "step" and f"reward_{name}" in x]
        smooth = [
            (step, sum(v for _, v in steps[max(0, at - 4) : at + 5]) / len(steps[max(0, at - 4) : at + 5]))
            for at, (step, _) in enumerate(steps)
        ]
        points = " ".join(place(*point) for point in smooth)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for line in lines:
            if line["kind"] == "evaluation":
                x, y = place(line["step"], line[f"reward_{name}"]).split(",")
                parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="white" stroke="{colour}" stroke-width="2"/>')
        label = name.replace("_", " ")
        parts.append(f'<text x="{left + 12 + 110 * row}" y="{height - 8}" fill="{colour}">{label}</text>')
    said = f"lines: answers learnt from; circles: held-out prompts; {last} steps"
    parts.append(f'<text x="{left + 240}" y="{height - 8}" fill="#555">{said}</text></svg>')
    path.write_text("\n".join(parts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with tang_jueju_lvshi.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/verse"))
    parser.add_argument("--only", choices=["quatrains", "reward", "table"], default=None)
    parser.add_argument("--picture", type=Path, default=None, help="SVG file for the curves")
    parser.add_argument("overrides", nargs="*", help="settings of the last recipe, such as schedule.steps=50")
    asked = parser.parse_args()
    output, console = asked.output, Console()
    data = output / "data"
    files = [f"data.train.0={data}/train.jsonl", f"data.validation.0={data}/held_out.jsonl"]
    if asked.only == "table":
        sys.exit(0 if show_table(output / "reward", data, console) else 1)
    if asked.only != "reward":
        write_data(asked.data, data)
        began = time.monotonic()
        own = asked.overrides if asked.only else []
        recipe = read_recipe(RECIPES / "1-quatrains.yaml", [f"output={output}/quatrains", *files, *own])
        train(recipe, overwrite=True)
        console.print(f"quatrains: {time.monotonic() - began:.0f} s")
    if asked.only == "quatrains":
        return
    began = time.monotonic()
    places = [f"model.path={output}/quatrains", f"output={output}/reward", *files]
    recipe = read_recipe(RECIPES / "2-tones-and-rhymes.yaml", [*places, *asked.overrides])

    def tell(event: Event) -> None:
        if event["kind"] in ("evaluation", "alarm", "notice"):
            console.print({k: round(v, 4) if isinstance(v, float) else v for k, v in event.items()})

    outcome = train(recipe, tell, overwrite=True)
    console.print(f"reward: {time.monotonic() - began:.0f} s")
    if asked.picture is not None:
        write_picture(outcome.folder.path, asked.picture)
    sys.exit(0 if show_table(outcome.folder.path, data, console) else 1)


if __name__ == "__main__":
    main()
