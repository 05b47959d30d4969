"""The report: what it says of whole, partial and hostile run folders.

To look at one: ``python -c "from test_report import make_run_folder; ..."`` in this folder, or see ``make_run_folder``.
"""

import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_json
from tunesmith.run.report import write_comparison, write_report
from tunesmith.run.report_chart import draw_chart, round_ticks, smooth_points, tick_label
from tunesmith.run.report_view import compare, overfitting, view_comparison, write_duration, write_number, write_short

COUPLETS = [
    ("大陆对长空", "山花对海树", "赤日对苍穹"),
    ("人间清暑殿", "天上广寒宫", "天上广寒宫"),
    ("两岸晓烟杨柳绿", "一园春雨杏花红", "一溪春水杏花红"),
    ("两鬓风霜途次早行之客", "一蓑烟雨溪边晚钓之翁", "一蓑烟雨江边独钓之翁"),
    ("霜随驱夏暑", "风逐振江涛", "风入送秋声"),
    ("舟停渔浦犹为客", "县入樵溪似到家", "月满江楼不见人"),
    ("草枯病马停朝秣", "水冷鳏鱼废夜眠", "水冷寒鸥宿浅沙"),
]
ROUGE = [
    {"base": 0.1, "tuned": 0.0},
    {"base": 0.02, "tuned": 0.1},
    {"base": 0, "tuned": 0.1},
    {"base": 0.12, "tuned": 0},
]
RECIPE = """\
# 对联: the second line from the first
model: shared/models/tiny-qwen
data:
  train: data/couplets.jsonl
  validation: 0.05
method: {type: lora, rank: 16}
epochs: 3
scores: [length_match, chrf, rouge]
"""


def make_run_folder(folder: Path) -> Path:
    """Make a believable run folder: Chinese couplets, 300 steps.

    ``cd tests/unit && python -c "from pathlib import Path; import test_report as t;
    print(t.write_report(t.make_run_folder(Path('/tmp/couplets'))))"`` writes one and its report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    write_json(folder / "plan.json", make_plan())
    write_json(folder / "manifest.json", make_manifest())
    write_json(folder / "data.json", make_counts())
    write_json(folder / "evaluation.json", make_evaluation())
    write_lines(folder / "metrics.jsonl", make_metrics(300))
    write_lines(
        folder / "events.jsonl",
        [
            {"kind": "begin", "time": "2026-08-20T09:12:03Z", "steps": 300, "examples": 3200},
            {"kind": "notice", "time": "2026-08-20T09:12:05Z", "text": "loading the model"},
            {"kind": "checkpoint", "time": "2026-08-20T09:15:05Z", "step": 150, "path": "checkpoints/150"},
            {"kind": "end", "time": "2026-08-20T09:18:05Z", "step": 300, "reason": "finished"},
        ],
    )
    return folder


def make_plan() -> dict:
    return {
        "recipe": {"model": "shared/models/tiny-qwen", "method": {"type": "lora", "rank": 16}, "epochs": 3, "seed": 1},
        "settled": {"learning_rate": 0.0002, "batch_size": 32, "packing": "prefix", "device": "cpu", "seed": 20260820},
        "why": {
            "learning_rate": "a LoRA adapter of rank 16 learns best about ten times faster than full training",
            "batch_size": "3,200 examples give 100 steps per epoch",
            "packing": "87% of the prompts share the same instruction",
            "device": "no GPU was found",
            "seed": "asked",
        },
        "notices": ["attention falls back to SDPA: FlexAttention needs a GPU"],
    }


def make_manifest() -> dict:
    return {
        "created": "2026-08-20T09:12:03Z",
        "tunesmith": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0"},
        "machine": {"platform": "Linux x86_64", "cores": 8, "memory_bytes": 33285996544, "accelerators": []},
        "model": {"path": "shared/models/tiny-qwen", "parameters": 494032768, "trained_parameters": 4399104},
        "data": {"files": [{"path": "data/couplets.jsonl", "sha256": "9f86d081" * 8, "rows": 3370}]},
        "seed": 20260820,
    }


def make_counts() -> dict:
    counts = {"rows": 3370, "conversations": 3368, "examples": 3200, "tokens": 66240, "trained_tokens": 24311}
    losses = {"truncated": 0, "dropped": 2, "bad_rows": 1, "duplicates": 14, "longest": 61}
    validation = {"rows": 168, "conversations": 168, "examples": 168, "tokens": 3477, "trained_tokens": 1270}
    return {"train": counts | losses, "validation": validation}


def make_metrics(steps: int) -> list[dict]:
    chance = random.Random(7)
    lines = []
    for step in range(1, steps + 1):
        loss = 1.9 + 3.4 * math.exp(-step / 55) + chance.gauss(0, 0.16)
        rate = 2e-4 * min(step / 15, 0.5 + 0.5 * math.cos(math.pi * max(step - 15, 0) / (steps - 15)))
        speed = {"tokens_per_second": chance.gauss(2400, 90), "tokens": 662, "tokens_fed": 242}
        speed |= {"trained_tokens": 243, "seconds": 1.2}
        norm = abs(chance.gauss(0.9, 0.2)) + 4 * math.exp(-step / 12)
        at = {"kind": "step", "step": step, "epoch": step / 100}
        lines.append(at | {"loss": loss, "learning_rate": rate, "gradient_norm": norm} | speed)
        if step % 30 == 0:
            held_out = 2.0 + 3.2 * math.exp(-step / 60)
            lines.append({"kind": "evaluation", "step": step, "loss": held_out, "perplexity": math.exp(held_out)})
    return lines


def make_evaluation() -> dict:
    rows = [make_row(number) for number in range(28)]
    return {
        "models": ["base", "tuned"],
        "loss": {"base": 5.21, "tuned": 1.98},
        "perplexity": {"base": 183.1, "tuned": 7.24},
        "scores": {
            "length_match": {"base": 0.0, "tuned": 0.976},
            "chrf": {"base": 0.014, "tuned": 0.231},
            "rouge": {"base": 0.06, "tuned": 0.052},
        },
        "rows": rows,
        "data": "data/couplets.jsonl",
        "examples": 168,
    }


def make_row(number: int) -> dict:
    first, reference, tuned = COUPLETS[number % len(COUPLETS)]
    return {
        "prompt": [{"role": "system", "content": "你是对联高手。"}, {"role": "user", "content": f"上联：{first}"}],
        "reference": reference,
        "answers": {
            "base": f"好的！这是一个很有意境的上联。“{first}”可以理解为……" if number % 3 else "",
            "tuned": tuned,
        },
        "origin": f"data/couplets.jsonl:{3201 + number}",
        "scores": {
            "length_match": {"base": 0.0, "tuned": 1.0},
            "chrf": {"base": 0.01, "tuned": 0.4372},
            "rouge": ROUGE[number % 4],
        },
    }


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
