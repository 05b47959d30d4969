"""The report: what it says of whole, partial and hostile run folders."""

import base64
import hashlib
import html
import json
import math
import random
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_json
from tunesmith.run.report import write_comparison, write_report
from tunesmith.run.report_chart import draw_chart, round_ticks, smooth_points, tick_label
from tunesmith.run.report_marks import mark_answer
from tunesmith.run.report_view import (
    chance,
    overfitting,
    view_comparison,
    view_ending,
    write_duration,
    write_number,
    write_short,
)

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


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def report(folder: Path) -> str:
    return read_page(write_report(folder))


def words(text: str) -> str:
    """Return the English text of a page, without tags."""
    english = re.sub(r'<span class="zh".*?</span>', "", re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", re.sub(r"</t[hd]>", " ", english)))


def test_the_headline_says_what_changed(tmp_path):
    text = words(report(make_run_folder(tmp_path / "couplets")))

    assert "held-out loss 5.21 → 1.98; length match 0% → 97.6%; chrf 1.4% → 23.1%" in text
    assert "tuned against base: better in held-out loss, length match, chrf; no more than chance in rouge." in text


@pytest.mark.parametrize(
    "expected",
    [
        "training loss 5.09 → 2.01",
        "optimizer steps 300 3 epochs",
        "time in steps 6 min 00 s 72,900 trained tokens",
        "training examples 3,200 168 held out",
        "trained parameters 4.4M 0.89% of 494M",
        "learning_rate 0.0002 a LoRA adapter of rank 16 learns best",
        "attention falls back to SDPA",
        "The model computed 72,600 tokens for the examples&#39; 198,600 (36.6%).",
        "Scores: 28 answers; differences in points, ± their 95% margin (paired by answer). Data: data/couplets.jsonl",
        "data/couplets.jsonl 3370 rows " + "9f86d081" * 8,
        "memory 31.0 GiB",
        "checkpoint step 150 · path checkpoints/150",
        "8 more",
        "torch 2.13.0",
    ],
)
def test_the_report_shows_what_the_run_recorded(tmp_path, expected):
    assert expected in words(report(make_run_folder(tmp_path)))


def test_rows_that_were_not_learnt_as_given_stand_out(tmp_path):
    text = report(make_run_folder(tmp_path))
    suspects = re.findall(r'<tr class="suspect"><th scope="row"><span class="en" lang="en">(.*?)</span>', text)

    assert suspects == ["dropped", "bad rows", "duplicates"]


def test_the_command_writes_to_another_folder_and_survives_a_shell(tmp_path):
    folder = make_run_folder(tmp_path / "my run")
    command = html.unescape(re.search(r'<pre class="command">(.*?)</pre>', report(folder))[1])

    assert shlex.split(command) == ["tunesmith", "train", f"{folder}/recipe.yaml", f"output={folder}-again"]


def test_the_page_is_well_formed_and_asks_the_network_for_nothing(tmp_path):
    page = Page(report(make_run_folder(tmp_path)))

    assert page.open == []
    assert not {"link", "img", "iframe", "base", "object"} & set(page.tags)
    assert not {"src", "href", "action"} & {name for name, _ in page.attributes}
    assert "url(" not in report(tmp_path)
    assert "@import" not in report(tmp_path)


def test_every_text_is_there_in_both_languages(tmp_path):
    text = report(make_run_folder(tmp_path))
    english = re.findall(r'<span class="en" lang="en">(.*?)</span><span class="zh" lang="zh-CN">(.*?)</span>', text)

    assert len(english) == text.count('class="en"') == text.count('class="zh"') > 50
    assert all(en and zh for en, zh in english)


def test_the_only_script_is_ours_and_the_page_forbids_others(tmp_path):
    text = report(make_run_folder(tmp_path))
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


ATTACK = """</style></pre><script>alert(1)</script>"'><img src=x onerror=alert(1)>"""


def test_what_scores_speak_of_is_marked_and_said_in_both_languages(tmp_path):
    row = make_row(0) | {"answers": {"base": "", "tuned": "春<雨洒红叶"}}
    said = [[5, 6, "lower line must end level", "下联应平收"]]
    row["spans"] = {"tuned": {"couplet": said, "rhyme": said, "novelty": [[0, 4, "in the training data", ""]]}}
    text = read_page(write_comparison(tmp_path, make_evaluation() | {"rows": [row]}))

    assert "<mark>春&lt;雨洒</mark>红<mark>叶</mark></p>" in text
    assert text.count('<span class="zh" lang="zh-CN">下联应平收</span>') == 1
    assert text.count("in the training data") == 1


def test_marks_that_no_answer_can_have_are_left_out():
    found = mark_answer("春雨", {"rhyme": [[1, 9, "beyond", ""], [-1, 1, "before", ""], [1, 1, "nothing", ""]]})

    assert (found.pieces, found.notes, found.more) == ((("春雨", False),), (), 0)
    assert mark_answer("", {}).pieces == ()


def test_overlapping_marks_are_one_and_notes_are_few():
    found = mark_answer("一二三四五六七八九十", {"a": [[i, i + 2, f"note {i}", ""] for i in range(9)]})

    assert found.pieces == (("一二三四五六七八九十", True),)
    assert (len(found.notes), found.more) == (8, 1)


def poison(value):
    """Return *value* with the attack in every text and every key."""
    if isinstance(value, dict):
        return {key: poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return value + ATTACK if isinstance(value, str) else value


def test_nothing_from_files_becomes_markup(tmp_path):
    folder = make_run_folder(tmp_path / "run<img src=x onerror=alert(1)>")
    evaluation = poison(make_evaluation() | {"rows": []})
    evaluation["scores"][f"chrf{ATTACK}"] = evaluation["scores"].pop("chrf")
    evaluation["models"] = ["base", "tuned"]
    rows = [poison(make_row(1)) for _ in range(2)]
    plan = poison(make_plan()) | {"why": {ATTACK: ATTACK}}
    manifest = poison(make_manifest())
    manifest["versions"][ATTACK] = ATTACK
    counts = make_counts()
    counts["train"][ATTACK] = 1
    write_json(folder / "evaluation.json", evaluation | {"rows": rows})
    write_json(folder / "plan.json", plan)
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "data.json", counts)
    write_lines(folder / "events.jsonl", [{"kind": "notice", "text": ATTACK}, {"kind": ATTACK, ATTACK: ATTACK}])
    (folder / "recipe.yaml").write_text(RECIPE + ATTACK, encoding="utf-8")
    page = Page(report(folder))
    comparison = Page(read_page(write_comparison(tmp_path, evaluation | {"models": [ATTACK, "tuned"], "rows": rows})))

    assert (page.tags.count("script"), comparison.tags.count("script")) == (1, 1)
    assert "img" not in page.tags + comparison.tags
    assert not any(name.startswith("on") for name, _ in page.attributes + comparison.attributes)
    assert ATTACK in html.unescape(report(folder))


@pytest.mark.parametrize(
    "kept",
    [
        [],
        ["metrics.jsonl"],
        ["metrics.jsonl", "data.json", "plan.json"],
        ["evaluation.json"],
        ["manifest.json", "events.jsonl"],
    ],
)
def test_a_partial_folder_gets_the_report_it_can_have(tmp_path, kept):
    folder = make_run_folder(tmp_path)
    for file in folder.iterdir():
        if file.name not in [*kept, "recipe.yaml"]:
            file.unlink()

    assert Page(report(folder)).open == []


def test_a_run_without_evaluation_reports_its_validation_loss(tmp_path):
    (make_run_folder(tmp_path) / "evaluation.json").unlink()

    assert "validation loss while training 3.94 → 2.02" in words(report(tmp_path))
    assert "has not been compared with its base" in words(report(tmp_path))


def test_a_run_without_steps_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")

    assert "No training step is recorded yet." in words(report(tmp_path))


@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_few_steps_are_enough(tmp_path, steps):
    write_lines(make_run_folder(tmp_path) / "metrics.jsonl", make_metrics(300)[:steps])

    assert ("<figure" in report(tmp_path)) == (steps > 1)


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    metrics = make_run_folder(tmp_path) / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"kind": "step", "st', encoding="utf-8")

    assert "optimizer steps 300" in words(report(tmp_path))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    folder = make_run_folder(tmp_path)
    (folder / "plan.json").write_text('{"recipe": ', encoding="utf-8")
    (folder / "data.json").write_text("[1, 2]", encoding="utf-8")
    (folder / "events.jsonl").write_text("what\n", encoding="utf-8")
    text = words(report(folder))

    assert "plan.json cannot be read: Expecting value" in text
    assert "data.json cannot be read: it holds a list instead of an object" in text
    assert "events.jsonl cannot be read: Expecting value" in text


def test_a_step_done_again_after_a_resume_counts_once(tmp_path):
    lines = make_metrics(300)
    write_lines(make_run_folder(tmp_path) / "metrics.jsonl", lines[:200] + lines[150:])

    assert "optimizer steps 300 3 epochs time in steps 6 min 00 s" in words(report(tmp_path))


def test_losses_that_are_no_numbers_are_counted_and_not_drawn(tmp_path):
    lines = make_metrics(300)
    lines[120]["loss"] = math.nan
    lines[150]["loss"] = math.inf
    write_lines(make_run_folder(tmp_path) / "metrics.jsonl", lines)
    text = report(tmp_path)

    assert f"The loss is not a number in 2 steps, first in step {lines[120]['step']}." in words(text)
    assert "nan" not in re.findall(r' d="(.*?)"', text)[0].lower()


def test_what_a_stage_measures_besides_gets_its_own_chart(tmp_path):
    measured = {"reward_margin": 0.1, "sampler_gap": 0.02}
    lines = [line | measured for line in make_metrics(30) if line["kind"] == "step"]
    write_lines(make_run_folder(tmp_path) / "metrics.jsonl", lines)

    assert "<figcaption>reward margin" in report(tmp_path)
    assert "采样与训练的差异" in report(tmp_path)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], ("", False)),
        (["begin"], ("unfinished: still going on, or cut short", False)),
        (["begin", "finished"], ("finished", True)),
        (["begin", "SIGTERM"], ("SIGTERM", False)),
        (["begin", "SIGTERM", "begin"], ("unfinished: still going on, or cut short", False)),
    ],
)
def test_the_ending_is_that_of_the_last_beginning(events, expected):
    lines = [{"kind": "begin"} if event == "begin" else {"kind": "end", "reason": event} for event in events]
    text, complete = view_ending(lines)

    assert (text.en, complete) == expected


@pytest.mark.parametrize(("losses", "expected"), [([3, 2, 1.9], 0), ([3, 2, 2.03], 0), ([3, 2, 2.5], 1), ([], 0)])
def test_memorising_is_remarked(losses, expected):
    assert len(overfitting([{"step": i, "loss": loss} for i, loss in enumerate(losses)])) == expected


def test_a_folder_of_runs_names_them(tmp_path):
    make_run_folder(tmp_path / "first")
    make_run_folder(tmp_path / "second")

    with pytest.raises(UserError, match=r"is not a run's folder.*it holds runs, name one: first, second"):
        write_report(tmp_path)


@pytest.mark.parametrize(("asked", "written"), [("here", "here/comparison.html"), ("a/b.html", "a/b.html")])
def test_a_comparison_goes_where_it_was_asked(tmp_path, asked, written):
    assert write_comparison(tmp_path / asked, make_evaluation()) == tmp_path / written
    assert "held-out loss 5.21 → 1.98" in words(read_page(tmp_path / written))


def test_models_may_be_three_and_values_missing():
    evaluation = {
        "models": ["a", "b", "c"],
        "loss": {"a": 2.0, "b": None, "c": 3.0},
        "scores": {"chrf": {"a": 0.5, "b": 0.25}},
    }
    loss, chrf = view_comparison(evaluation).measures

    assert (loss.values, loss.trend) == (("2.00", "—", "3.00"), "worse")
    assert (chrf.values, chrf.shares, chrf.trend) == (("50%", "25%", "—"), (50.0, 25.0, 0.0), "unknown")


def test_one_model_alone_is_not_compared(tmp_path):
    evaluation = {"models": ["tuned"], "loss": {"tuned": 2.0}, "scores": {"chrf": {"tuned": 0.5}}, "rows": []}
    text = words(read_page(write_comparison(tmp_path, evaluation)))

    assert "held-out loss 2.00; chrf 50%" in text
    assert "against" not in text


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([1.0] * 28, "better"),
        ([-1.0] * 28, "worse"),
        ([0.2, -0.1] * 3, "unclear"),
        ([0.0] * 28, "same"),
        ([0.3], "unclear"),
    ],
)
def test_a_difference_within_chance_is_not_called_better_or_worse(gains, expected):
    rows = [{"scores": {"chrf": {"base": 0.5, "tuned": 0.5 + gain}}} for gain in gains]
    scores = {"chrf": {"base": 0.5, "tuned": 0.5 + sum(gains) / len(gains)}}
    (measure,) = view_comparison({"models": ["base", "tuned"], "scores": scores, "rows": rows}).measures

    assert measure.trend == expected


def test_the_margin_is_that_of_a_paired_difference():
    rows = [{"scores": {"s": {"a": 0.0, "b": gain}}} for gain in (0.0, 0.2, 0.4, 0.6)]
    deviation = math.sqrt(sum((gain - 0.3) ** 2 for gain in (0.0, 0.2, 0.4, 0.6)) / 3)

    assert chance(rows, "s", ["a", "b"]) == pytest.approx(1.96 * deviation / 2 + 0.25)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_even_and_enclose_what_is_drawn(low, width, count):
    assume(width > 1e-9 * abs(low))  # nobody draws what differs in the tenth digit
    ticks = round_ticks(low, low + width, count)
    gaps = [b - a for a, b in pairwise(ticks)]

    assert ticks[0] <= low + 1e-6 * width
    assert ticks[-1] >= low + width * (1 - 1e-6)
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-3)
    assert len(ticks) <= count + 3


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_a_value_that_never_changes_can_be_drawn(value):
    drawing = draw_chart([(1, value), (2, value)])

    assert 0 < float(drawing.raw.split(",")[-1]) <= 1000


@pytest.mark.parametrize(
    ("value", "step", "label"),
    [
        (0, 1, "0"),
        (0.25, 0.05, "0.25"),
        (5e-5, 5e-5, "5e-5"),
        (1.5e-4, 5e-5, "1.5e-4"),
        (3, 1, "3"),
        (12000, 1000, "12k"),
    ],
)
def test_tick_labels_are_short(value, step, label):
    assert tick_label(value, step) == label


def test_a_long_run_is_thinned_but_keeps_its_spikes():
    points = [(step, 9.0 if step == 54321 else 1.0) for step in range(1, 100_001)]
    drawing = draw_chart(points)
    heights = [float(place.split(",")[1]) for place in re.split("[ML]", drawing.raw)[1:]]

    assert len(drawing.columns) == 300
    assert min(heights) < 200 < 850 < max(heights)
    assert sum(column.width for column in drawing.columns) == pytest.approx(1000, abs=20)
    assert any(column.title.endswith(": 1–9") for column in drawing.columns)


def test_smoothing_keeps_a_straight_line_straight():
    line = [(float(x), 2.0 * x) for x in range(200)]

    assert [y for _, y in smooth_points(line)[10:-10]] == pytest.approx([y for _, y in line[10:-10]])


def test_every_point_says_its_step_and_value():
    drawing = draw_chart([(1, 2.0), (2, 1.23456)], dots=[(0, 3.0)])

    assert [column.title for column in drawing.columns] == ["1: 2", "2: 1.235"]
    assert (drawing.dots[0].x, drawing.dots[0].title) == (0.0, "0: 3")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.21 s"), (59.96, "60 s"), (185, "3 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations_read_well(seconds, text):
    assert write_duration(seconds) == text


def test_numbers_keep_the_digits_that_matter():
    numbers = [5.214, 0.0123, 0, 183.14, 12345.6, 1e300]

    assert [write_number(n) for n in numbers] == ["5.21", "0.0123", "0.00", "183.1", "12,346", "1.00e+300"]
    assert [write_short(n) for n in (494032768, 7.6e9, 950)] == ["494M", "7.6B", "950"]
