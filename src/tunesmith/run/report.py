"""Pages that show a run or a comparison: one HTML file each, readable without network or server."""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tunesmith.core.errors import UserError
from tunesmith.core.files import read_jsonl, write_text
from tunesmith.run.report_chart import Chart, draw_chart
from tunesmith.run.report_marks import mark_answer
from tunesmith.run.report_parity import parity_remarks
from tunesmith.run.report_rollouts import REWARD, alarm_remarks, view_reward, view_rollouts
from tunesmith.run.report_view import (
    Text,
    data_cards,
    model_cards,
    training_cards,
    view_comparison,
    view_data,
    view_ending,
    view_remarks,
    view_sharing,
    view_training,
    write_share,
)

PAGES = Path(__file__).parent / "report_page"
SAMPLES_OPEN, SAMPLES_MOST = 20, 500
SERIES = {
    "learning_rate": Text("learning rate", "学习率"),
    "gradient_norm": Text("gradient norm", "梯度范数"),
    "tokens_per_second": Text("tokens per second", "每秒词元数"),
}
# what preferences and rollouts measure, in Chinese; in English each is called as it is logged
IN_CHINESE = {
    "rewards/chosen": "所选回答的奖励",
    "rewards/rejected": "所弃回答的奖励",
    "rewards/margin": "奖励之差",
    "rewards/accuracy": "偏好正确率",
    "reward_spread": "组内奖励的离散",
    "groups_alike": "奖励全同的组",
    "entropy": "熵",
    "divergence": "散度",
    "divergence_own": "散度（自己的回答）",
    "divergence_data": "散度（数据的回答）",
    "own_answers": "自己作答的比例",
    "answer_tokens": "回答的词元数",
    "repeated": "自我重复",
    "different": "互不相同的回答",
    "copied": "抄自训练数据",
    "same_rhyme": "最常见韵部的比例",
    "cut": "被截断的回答",
    "rollout_seconds": "采样秒数",
    "sampler_gap": "采样与训练的差异",
    "sft_loss": "模仿损失",
    "value_loss": "价值头损失",
}
UNCHARTED = {"kind", "step", "epoch", "loss", "reward", "seconds", "tokens", "tokens_fed", "trained_tokens"}


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder holds; a file that is not there is empty, one that cannot be read is a problem."""

    recipe: str
    plan: dict[str, Any]
    manifest: dict[str, Any]
    data: dict[str, Any]
    evaluation: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    events: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    problems: list[Text]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or partial, and return its path.

    Raises ``UserError`` when *folder* is not a run's folder.
    """
    run = read_run(folder)
    comparison = view_comparison(run.evaluation) if run.evaluation else None
    page = render(
        "report.html.jinja",
        run=run,
        name=folder.resolve().name,
        comparison=comparison,
        headline=comparison.headline
        if comparison
        else view_reward(run.steps, run.evaluations) or view_training(run.steps, run.evaluations),
        cards=[*training_cards(run.steps), *data_cards(run.data), *model_cards(run.manifest.get("model", {}))],
        ending=view_ending(run.events),
        remarks=[
            *run.problems,
            *parity_remarks(folder),
            *alarm_remarks(run.events),
            *view_remarks(run.steps, run.evaluations, run.plan),
        ],
        rollouts=view_rollouts(run.samples),
        charts=draw_charts(run),
        settings=explain_settings(run.plan),
        data_rows=view_data(run.data),
        data_note=view_sharing(run.steps),
        environment=list_environment(run.manifest),
        command=shlex.join(["tunesmith", "train", str(folder / "recipe.yaml"), f"output={folder}-again"]),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def write_comparison(folder_or_file: Path, evaluation: Mapping[str, Any]) -> Path:
    """Write *evaluation* (of the shape of ``evaluation.json``) as a page and return its path.

    A path that ends in ``.html`` is the page; any other is the folder to write ``comparison.html`` into.
    """
    target = folder_or_file if folder_or_file.suffix == ".html" else folder_or_file / "comparison.html"
    comparison = view_comparison(evaluation)
    write_text(target, render("comparison.html.jinja", comparison=comparison, headline=comparison.headline))
    return target


def read_run(folder: Path) -> RunRecord:
    """Read what a run left in *folder*; raise ``UserError`` when it is not a run's folder."""
    if not (folder / "recipe.yaml").exists() and not (folder / "metrics.jsonl").exists():
        runs = sorted(path.parent.name for path in folder.glob("*/recipe.yaml"))
        hint = f"; it holds runs, name one: {', '.join(runs)}" if runs else ""
        raise UserError(f"{folder} is not a run's folder: it has neither recipe.yaml nor metrics.jsonl{hint}")
    problems: list[Text] = []
    metrics = read_lines(folder / "metrics.jsonl", problems)
    recipe = folder / "recipe.yaml"
    return RunRecord(
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.exists() else "",
        plan=read_object(folder / "plan.json", problems),
        manifest=read_object(folder / "manifest.json", problems),
        data=read_object(folder / "data.json", problems),
        evaluation=read_object(folder / "evaluation.json", problems),
        steps=latest_by_step(metrics, "step"),
        evaluations=latest_by_step(metrics, "evaluation"),
        events=read_lines(folder / "events.jsonl", problems),
        samples=read_lines(folder / "samples" / "rollouts.jsonl", problems),
        problems=problems,
    )


def read_object(path: Path, problems: list[Text]) -> dict[str, Any]:
    """Return the JSON object in *path*, empty if there is no file; add to *problems* what cannot be read."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(unreadable(path, str(error)))
        return {}
    if isinstance(value, dict):
        return value
    problems.append(unreadable(path, f"it holds a {type(value).__name__} instead of an object"))
    return {}


def read_lines(path: Path, problems: list[Text]) -> list[dict[str, Any]]:
    """Return the JSON objects in *path*, one a line; add to *problems* what cannot be read."""
    try:
        return read_jsonl(path)
    except ValueError as error:
        problems.append(unreadable(path, str(error)))
        return []


def unreadable(path: Path, why: str) -> Text:
    """Say that a file is there but is of no use."""
    return Text(f"{path.name} cannot be read: {why}", f"无法读取 {path.name}：{why}")


def latest_by_step(metrics: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind in order of steps; a step done again after a resume counts once, as last done."""
    lines = {line["step"]: line for line in metrics if line["kind"] == kind}
    return [lines[step] for step in sorted(lines)]


def draw_charts(run: RunRecord) -> list[tuple[str, Text, Chart]]:
    """Return the charts that have enough points: an identifier, a title and the geometry of each."""

    def series(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in run.steps if line.get(key) is not None]

    def held_out(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in run.evaluations if line.get(key) is not None]

    rewarded = any("reward" in line for line in run.steps)
    marks = epoch_marks(run.steps)
    charts = [("loss", Text("loss", "损失"), draw_chart(series("loss"), [] if rewarded else held_out("loss"), marks))]
    if rewarded:  # the loss of such a stage says little; what it earned does
        charts.insert(0, ("reward", REWARD, draw_chart(series("reward"), held_out("reward"), marks)))
    for key in dict.fromkeys([*SERIES, *(run.steps[-1] if run.steps else ())]):
        if key not in UNCHARTED:
            label = key.replace("_", " ")
            drawing = draw_chart(series(key), from_zero=True, smoothed=key != "learning_rate")
            charts.append((key, SERIES.get(key, Text(label, IN_CHINESE.get(key, label))), drawing))
    return [(name, title, chart) for name, title, chart in charts if chart]


def epoch_marks(steps: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """Return the steps at which epochs end, with their numbers; none when there are too many to tell apart."""
    marks: list[tuple[float, str]] = []
    for line in steps:
        epoch = int((line.get("epoch") or 0) + 1e-6)
        if epoch > len(marks):
            marks.append((line["step"], str(epoch)))
    return marks if len(marks) <= 12 else []


def explain_settings(plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and reason of everything that the plan settled."""
    settled, why = plan.get("settled", {}), plan.get("why", {})
    return [(name, show(settled.get(name, "")), show(why.get(name, ""))) for name in dict.fromkeys([*settled, *why])]


def list_environment(manifest: dict[str, Any]) -> list[tuple[Text, dict[str, Any]]]:
    """Return the manifest's small tables that are there: run, machine, versions; bytes become GiB."""
    machine = {
        key.removesuffix("_bytes"): f"{value / 2**30:.1f} GiB" if key.endswith("_bytes") else value
        for key, value in manifest.get("machine", {}).items()
    }
    run = {key: manifest[key] for key in ("created", "tunesmith", "seed") if key in manifest}
    model = {f"model {key}": value for key, value in manifest.get("model", {}).items()}
    tables = [
        (Text("Run", "运行"), run | model),
        (Text("Machine", "机器"), machine),
        (Text("Versions", "版本"), manifest.get("versions", {})),
    ]
    return [(title, values) for title, values in tables if values]


def show(value: Any) -> str:
    """Return text bare and any other JSON value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def render(template: str, **values: Any) -> str:
    """Return a page; everything in *values* is escaped, and the page may run no script but its own."""
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"say": say, "mark_answer": mark_answer}
    environment.filters |= {
        "show": show,
        "share": write_share,
        "yaml": lambda value: yaml.safe_dump(value, allow_unicode=True, sort_keys=False),
    }
    script = (PAGES / "page.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        style=Markup((PAGES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        samples_open=SAMPLES_OPEN,
        samples_most=SAMPLES_MOST,
        **values,
    )


def say(en: str, zh: str) -> Markup:
    """Return both texts, of which the page shows the one in the reader's language."""
    if en == zh:
        return Markup("{}").format(en)
    return Markup('<span class="en" lang="en">{}</span><span class="zh" lang="zh-CN">{}</span>').format(en, zh)
