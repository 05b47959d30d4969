"""What a report says of answers that a model learnt from: how their reward went, samples in parts, alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.run.report_view import Measure, Text, is_number, write_number

HELD_OUT_REWARD = Text("held-out reward", "留出集奖励")
REWARD = Text("reward", "奖励")
REWARDED = Text("What was rewarded", "得到奖励的回答")
WRITTEN = Text("What the model wrote while it learnt", "训练中模型自己写的回答")
_ENDS = 5
_SHOWN = 4


@dataclass(frozen=True)
class RolloutStep:
    """The answers that are kept of one step."""

    step: int
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class RolloutView:
    """Samples to show: of the first step that has some, of one in the middle, and of the last."""

    steps: tuple[RolloutStep, ...]
    names: tuple[str, ...]
    """Of the reward's parts."""
    title: Text


def view_rollouts(rows: Sequence[Mapping[str, Any]]) -> RolloutView | None:
    """Return what to show of the kept answers; None where there are none."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_step.setdefault(int(row.get("step", 0)), []).append(row)
    if not by_step:
        return None
    order = sorted(by_step)
    chosen = sorted({order[0], order[len(order) // 2], order[-1]})
    names = dict.fromkeys(name for row in rows for name in row.get("parts", {}))
    title = REWARDED if any("reward" in row for row in rows) else WRITTEN
    return RolloutView(tuple(RolloutStep(step, tuple(by_step[step][:_SHOWN])) for step in chosen), tuple(names), title)


def view_reward(steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """Return how the reward went: on held-out prompts where they were judged twice, else in training; often nothing."""
    held_out = [line["reward"] for line in evaluations if is_number(line.get("reward"))]
    if len(held_out) > 1:
        return [_rise(HELD_OUT_REWARD, held_out[0], held_out[-1])]
    rewards = [line["reward"] for line in steps if is_number(line.get("reward"))]
    if not rewards:
        return []
    return [_rise(REWARD, *(sum(part) / len(part) for part in (rewards[:_ENDS], rewards[-_ENDS:])))]


def _rise(name: Text, first: float, last: float) -> Measure:
    values = (write_number(first), write_number(last))
    scale = max(abs(first), abs(last)) or 1.0
    shares = tuple(100 * max(0.0, each) / scale for each in (first, last))
    if values[0] == values[1]:
        return Measure(name, values, shares, "same")
    return Measure(name, values, shares, "better" if last > first else "worse")


def alarm_remarks(events: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Return the alarms that were raised by what the model wrote."""
    alarms = dict.fromkeys(str(event.get("text", "")) for event in events if event.get("kind") == "alarm")
    return [Text(f"Alarm: {text}", f"警报：{text}") for text in alarms]
