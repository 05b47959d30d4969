"""What a report says: measures with a verdict, key numbers and remarks, each in English and Chinese."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, stdev
from typing import Any, Literal, NamedTuple, TypeGuard


class Text(NamedTuple):
    """The same words in both languages of the report."""

    en: str
    zh: str


NOTHING = Text("", "")
Trend = Literal["better", "worse", "same", "unclear", "unknown"]
HELD_OUT_LOSS = Text("held-out loss", "留出集损失")
TRAINING_LOSS = Text("training loss", "训练损失")
TRENDS = {
    "better": Text("better in", "变好："),
    "same": Text("the same in", "持平："),
    "unclear": Text("no more than chance in", "差异在偶然误差内："),
    "worse": Text("worse in", "变差："),
}


@dataclass(frozen=True)
class Measure:
    """One quantity for several models, in their order; the trend compares the last with the first."""

    name: Text
    values: tuple[str, ...]
    shares: tuple[float, ...]
    """Lengths of the bars in percent."""
    trend: Trend
    difference: str = ""
    """How far the last is from the first, with the margin of chance where rows tell it."""

    @property
    def change(self) -> str:
        """The first value and the last, as a headline shows them."""
        return self.values[0] if len(self.values) == 1 else f"{self.values[0]} → {self.values[-1]}"


@dataclass(frozen=True)
class Comparison:
    """What an evaluation found, ready to show."""

    models: tuple[str, ...]
    measures: tuple[Measure, ...]
    headline: tuple[Measure, ...]
    tally: Text
    basis: Text
    data: str
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Card:
    """A key number."""

    label: Text
    value: str
    note: Text = NOTHING


@dataclass(frozen=True)
class DataRow:
    """One count of the data; suspect when it tells of rows that were not learnt as given."""

    label: Text
    train: str
    validation: str
    suspect: bool


COUNTS = {
    "rows": Text("rows read", "读入行数"),
    "conversations": Text("conversations", "对话"),
    "examples": Text("examples", "样本"),
    "tokens": Text("tokens", "词元"),
    "trained_tokens": Text("trained tokens", "参与训练的词元"),
    "longest": Text("longest example, in tokens", "最长样本（词元）"),
    "truncated": Text("truncated", "被截断"),
    "dropped": Text("dropped", "被丢弃"),
    "bad_rows": Text("bad rows", "坏行"),
    "duplicates": Text("duplicates", "重复"),
    "duplicated_begin": Text("begin token twice", "起始符重复"),
    "duplicated_end": Text("end token twice", "结束符重复"),
}
SUSPECT = {"truncated", "dropped", "bad_rows", "duplicates", "duplicated_begin", "duplicated_end"}


def view_comparison(evaluation: Mapping[str, Any]) -> Comparison:
    """Return what *evaluation* (the content of ``evaluation.json``) says."""
    models = tuple(evaluation.get("models", ()))

    def of_models(values: Mapping[str, float | None]) -> list[float | None]:
        return [values.get(model) for model in models]

    rows = tuple(evaluation.get("rows", ()))
    held_out = [
        compare(name, of_models(evaluation[key]))
        for key, name in (("loss", HELD_OUT_LOSS), ("perplexity", Text("perplexity", "困惑度")))
        if evaluation.get(key)
    ]
    scores = [
        compare_scores(name, of_models(values), chance(rows, name, models))
        for name, values in evaluation.get("scores", {}).items()
    ]
    # Perplexity is the exponential of the loss: counting both would count one finding twice.
    counted = held_out[:1] + scores
    return Comparison(
        models=models,
        measures=(*held_out, *scores),
        headline=tuple(counted[:3]),
        tally=tally(counted, models),
        basis=basis(evaluation),
        data=str(evaluation.get("data") or ""),
        rows=rows,
    )


def basis(evaluation: Mapping[str, Any]) -> Text:
    """Say on how much the numbers rest: the loss on all examples, the scores on those that were answered."""
    rows = write_count(len(evaluation.get("rows", ())))
    examples = write_count(evaluation.get("examples") or 0)
    en, zh = [], []
    if evaluation.get("loss"):
        en.append(f"Held-out loss: mean over {examples} examples.")
        zh.append(f"留出集损失：{examples} 个样本的平均。")
    if evaluation.get("scores") and not evaluation.get("rows"):
        en.append(f"Scores: {examples} examples.")
        zh.append(f"分数：{examples} 个样本。")
    elif evaluation.get("scores"):
        en.append(f"Scores: {rows} answers; differences in points, ± their 95% margin (paired by answer).")
        zh.append(f"分数：{rows} 个回答；差值单位为百分点，± 为 95% 误差范围（按回答配对）。")
    return Text(" ".join(en), "".join(zh))


def compare(name: Text, numbers: Sequence[float | None]) -> Measure:
    """Return the measure of a loss or perplexity: lower is better, and the longest bar is the highest number."""
    known = [n for n in numbers if is_number(n)]
    scale = max(known, default=0.0) or 1.0
    values = tuple(write_number(n) if is_number(n) else "—" for n in numbers)
    shares = tuple(100 * n / scale if is_number(n) else 0.0 for n in numbers)
    if len(numbers) < 2 or not is_number(numbers[0]) or not is_number(numbers[-1]):
        return Measure(name, values, shares, "unknown")
    if values[0] == values[-1]:
        return Measure(name, values, shares, "same")
    return Measure(name, values, shares, "better" if numbers[-1] < numbers[0] else "worse")


def compare_scores(name: str, numbers: Sequence[float | None], margin: float | None) -> Measure:
    """Return the measure of a score in [0, 1]: higher is better, unless the difference is within the *margin*."""
    text = Text(name.replace("_", " "), name.replace("_", " "))
    values = tuple(write_share(n) if is_number(n) else "—" for n in numbers)
    shares = tuple(100 * n if is_number(n) else 0.0 for n in numbers)
    if len(numbers) < 2 or not is_number(numbers[0]) or not is_number(numbers[-1]):
        return Measure(text, values, shares, "unknown")
    gain = numbers[-1] - numbers[0]
    difference = f"{100 * gain:+.1f}".replace("-", "−") + ("" if margin is None else f" ± {100 * margin:.1f}")
    if values[0] == values[-1]:
        return Measure(text, values, shares, "same", difference)
    if margin is not None and abs(gain) <= margin:
        return Measure(text, values, shares, "unclear", difference)
    return Measure(text, values, shares, "better" if gain > 0 else "worse", difference)


def chance(rows: Sequence[Mapping[str, Any]], name: str, models: Sequence[str]) -> float | None:
    """Return the 95% margin of the mean difference between the last model's score and the first's, paired by row.

    ``None`` where no row carries both scores; 1, the widest there is, where only one does.
    """
    pairs = [[row.get("scores", {}).get(name, {}).get(model) for model in (models[0], models[-1])] for row in rows]
    gains: list[float] = [last - first for first, last in pairs if is_number(first) and is_number(last)]
    if len(gains) < 2:
        return 1.0 if gains else None
    # The correction for continuity keeps a handful of equal rows from looking certain.
    return 1.96 * stdev(gains) / math.sqrt(len(gains)) + 1 / len(gains)


def is_number(value: float | None) -> TypeGuard[float]:
    """Return whether *value* is there and finite."""
    return value is not None and math.isfinite(value)


def tally(measures: Sequence[Measure], models: Sequence[str]) -> Text:
    """Say in which measures the last model is better or worse than the first; empty where nothing was compared."""
    en, zh = [], []
    for trend, label in TRENDS.items():
        if names := [m.name for m in measures if m.trend == trend]:
            en.append(f"{label.en} {', '.join(name.en for name in names)}")
            zh.append(f"{label.zh}{'、'.join(name.zh for name in names)}")
    if not en:
        return NOTHING
    first, last = models[0], models[-1]
    return Text(f"{last} against {first}: {'; '.join(en)}.", f"{last} 与 {first} 相比，{'；'.join(zh)}。")


def view_training(steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """Return what the metrics alone say of the run: the validation loss if there is one, else the training loss."""
    losses = [line.get("loss") for line in evaluations]
    if len(losses) > 1:
        return [compare(Text("validation loss while training", "训练中的验证损失"), losses)]
    return [compare(TRAINING_LOSS, losses)] if (losses := training_losses(steps)) else []


def training_losses(steps: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Return the mean loss of the first five recorded steps and of the last five; of few steps, one mean."""
    losses = [s["loss"] for s in steps if s.get("loss") is not None]
    if not losses:
        return []
    parts = [losses] if len(losses) < 10 else [losses[:5], losses[-5:]]
    return [sum(part) / len(part) for part in parts]


def training_cards(steps: Sequence[Mapping[str, Any]]) -> Iterator[Card]:
    """Yield what the recorded steps tell: loss, number, time and speed."""
    if losses := training_losses(steps):
        note = Text("first and last five steps", "最初与最后五步") if len(losses) > 1 else NOTHING
        yield Card(TRAINING_LOSS, compare(TRAINING_LOSS, losses).change, note)
    if steps:
        epochs = f"{steps[-1].get('epoch') or 0:.3g}"
        yield Card(
            Text("optimizer steps", "优化步数"),
            write_count(steps[-1]["step"]),
            Text(f"{epochs} epoch{'' if epochs == '1' else 's'}", f"{epochs} 轮"),
        )
    if seconds := sum(step.get("seconds") or 0.0 for step in steps):
        tokens = write_count(sum(step.get("trained_tokens") or 0 for step in steps))
        yield Card(
            Text("time in steps", "训练用时"),
            write_duration(seconds),
            Text(f"{tokens} trained tokens", f"训练 {tokens} 个词元"),
        )
    if speeds := [step["tokens_per_second"] for step in steps if step.get("tokens_per_second")]:
        yield Card(Text("tokens per second", "每秒词元数"), write_count(median(speeds)), Text("median", "中位数"))


def data_cards(data: Mapping[str, Any]) -> Iterator[Card]:
    """Yield how many examples were learnt and held out."""
    examples = (data.get("train") or {}).get("examples")
    if examples is not None:
        held_out = write_count((data.get("validation") or {}).get("examples") or 0)
        yield Card(
            Text("training examples", "训练样本"),
            write_count(examples),
            Text(f"{held_out} held out", f"留出 {held_out} 个"),
        )


def model_cards(model: Mapping[str, Any]) -> Iterator[Card]:
    """Yield how much of the model was trained."""
    trained, total = model.get("trained_parameters"), model.get("parameters")
    if trained is not None and total:
        share = f"{100 * trained / total:.2g}%"
        yield Card(
            Text("trained parameters", "训练的参数"),
            write_short(trained),
            Text(f"{share} of {write_short(total)}", f"{write_short(total)} 的 {share}"),
        )


def view_data(data: Mapping[str, Any]) -> list[DataRow]:
    """Return the counts of ``data.json``, known ones first and with their names, others under their own."""
    train, validation = data.get("train") or {}, data.get("validation") or {}
    known = [key for key in COUNTS if key in train or key in validation]
    others = [key for key in {**train, **validation} if key not in COUNTS]
    return [
        DataRow(
            COUNTS.get(key, Text(key, key)),
            write_any(train.get(key)),
            write_any(validation.get(key)),
            key in SUSPECT and bool(train.get(key) or validation.get(key)),
        )
        for key in known + others
    ]


def view_sharing(steps: Sequence[Mapping[str, Any]]) -> Text:
    """Say how many tokens the model computed for those of the examples, where prefixes were shared."""
    tokens, fed = (sum(step.get(key) or 0 for step in steps) for key in ("tokens", "tokens_fed"))
    if not tokens or not fed:
        return NOTHING
    share = write_share(fed / tokens)
    return Text(
        f"The model computed {write_count(fed)} tokens for the examples' {write_count(tokens)} ({share}).",
        f"样本共 {write_count(tokens)} 个词元，模型实际计算 {write_count(fed)} 个（{share}）。",
    )


def view_ending(events: Sequence[Mapping[str, Any]]) -> tuple[Text, bool]:
    """Say how the run ended, and whether it came to its end; nothing where no events are kept."""
    turns = [event for event in events if event["kind"] in ("begin", "end")]
    if turns and turns[-1]["kind"] == "end":
        reason = turns[-1].get("reason", "")
        known = {"finished": "已完成", "early stopping": "提前停止"}
        return Text(reason, known.get(reason, reason)), reason in known
    return (
        Text("unfinished: still going on, or cut short", "未结束：仍在进行或中途中断") if events else NOTHING
    ), False


def view_remarks(
    steps: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    plan: Mapping[str, Any],
) -> list[Text]:
    """Return what a reader should know before trusting the numbers: own findings first, then the plan's notices."""
    remarks = []
    broken = [step["step"] for step in steps if not is_number(step.get("loss"))]
    if broken:
        remarks.append(
            Text(
                f"The loss is not a number in {write_count(len(broken))} steps, first in step {broken[0]}.",
                f"有 {write_count(len(broken))} 步的损失不是数值，最早在第 {broken[0]} 步。",
            )
        )
    remarks += overfitting(evaluations)
    return remarks + [Text(str(notice), str(notice)) for notice in dict.fromkeys(plan.get("notices", ()))]


def overfitting(evaluations: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Say so when the validation loss ended more than 2% above its lowest value."""
    # where a reward is watched, the loss is its negative, which no share of it bounds
    losses = [(e["loss"], e["step"]) for e in evaluations if is_number(e.get("loss")) and "reward" not in e]
    if not losses or losses[-1][0] <= 1.02 * min(losses)[0]:
        return []
    (lowest, step), (final, _) = min(losses), losses[-1]
    return [
        Text(
            f"The validation loss was lowest at step {step} ({write_number(lowest)}) and ended at "
            f"{write_number(final)}: the model began to memorise. "
            "Fewer epochs, a lower learning rate or more data help.",
            f"验证损失在第 {step} 步最低（{write_number(lowest)}），结束时为 {write_number(final)}："
            "模型开始过拟合。可减少轮数、降低学习率或增加数据。",
        )
    ]


def write_number(value: float) -> str:
    """Return *value* with the digits that a loss or perplexity deserves."""
    for most, form in ((0.1, ".3g"), (100, ".2f"), (10_000, ".1f"), (1e7, ",.0f")):
        if abs(value) < most and value:
            return f"{value:{form}}"
    return f"{value:.2e}" if value else "0.00"


def write_share(value: float) -> str:
    """Return a number in [0, 1] as a percentage with at most one decimal."""
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def write_count(value: float) -> str:
    """Return a count with its thousands apart."""
    return f"{value:,.0f}"


def write_any(value: Any) -> str:
    """Return a number as a count, nothing as a dash, and anything else as it is."""
    if value is None:
        return "—"
    return write_count(value) if isinstance(value, int | float) else str(value)


def write_short(value: float) -> str:
    """Return a large count as ``494M``."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def write_duration(seconds: float) -> str:
    """Return seconds as ``1 h 02 min``, ``3 min 05 s`` or ``4.2 s``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
