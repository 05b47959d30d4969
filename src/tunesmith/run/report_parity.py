"""What a run's page says of the forms that were made of it: merged, quantized, GGUF, behind an API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.run.report_view import Text

FILE = "verification.json"


def parity_remarks(folder: Path) -> list[Text]:
    """Return a sentence on each form that was held against the run in *folder*."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        return [_sentence(each) for each in json.loads(path.read_text("utf-8"))]
    except (ValueError, LookupError, TypeError) as error:
        return [Text(f"{FILE} cannot be read: {error}", f"无法读取 {FILE}：{error}")]


def _sentence(form: dict[str, Any]) -> Text:
    name, mean = Path(form["name"]).name, form["mean_difference"]
    share = f"{form['same']} / {form['tokens']}"
    moved = (
        ("", "") if mean is None else (f", log-probabilities differ by {mean:.2g}", f"，对数概率平均相差 {mean:.2g}")
    )
    if form["passed"]:
        return Text(
            f"{name} is this model: {share} likeliest tokens are the same{moved[0]}.",
            f"{name} 与本模型一致：{share} 个最可能词元相同{moved[1]}。",
        )
    return Text(
        f"{name} is NOT this model any more: {form['why']}.",
        f"{name} 与本模型已不一致：{share} 个最可能词元相同{moved[1]}；"
        f"提问词元相同 {form['prompts']} / {form['probes']}。",
    )
