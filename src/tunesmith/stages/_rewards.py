"""What an answer earns: scores with weights, each kept by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, SerializeAsAny, model_validator

from tunesmith.core.registry import Block
from tunesmith.scoring import SCORERS, Scorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tunesmith.data.conversation import Conversation
    from tunesmith.scoring import Score

    Answered = tuple[Conversation, str]


class Reward(Block):
    """A score that an answer is rewarded by; its name, or a group with its ``type``, is enough where it counts once."""

    short_for: ClassVar[str] = "score"

    score: Annotated[SerializeAsAny[Scorer], SCORERS]
    """The score: its name, or a group with ``type`` and settings."""

    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """What it counts in the sum; below 0 it is a penalty."""

    @model_validator(mode="before")
    @classmethod
    def _read_score(cls, value: Any) -> Any:
        return {"score": value} if isinstance(value, dict) and "type" in value else value


@dataclass(frozen=True, slots=True)
class Judged:
    """What answers earned: ``[n]`` in sum, and ``[n]`` by the name of each score."""

    total: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]
    why: dict[str, list[str]]


def reward_names(rewards: Sequence[Reward]) -> list[str]:
    """Return a name for each: that of its score, numbered where a score is there twice."""
    names: list[str] = []
    for reward in rewards:
        name = reward.score.type_name()
        earlier = sum(each == name or each.startswith(f"{name}_") for each in names)
        names.append(f"{name}_{earlier + 1}" if name in names else name)
    return names


def judge(rewards: Sequence[Reward], answered: Sequence[Answered]) -> Judged:
    """Return what *rewards* give answers to conversations."""
    parts: dict[str, NDArray[np.float64]] = {}
    why: dict[str, list[str]] = {}
    total = np.zeros(len(answered))
    for name, reward in zip(reward_names(rewards), rewards, strict=True):
        scores: list[Score] = reward.score.score_all(answered)
        parts[name] = np.array([score.value for score in scores], np.float64)
        why[name] = [score.why for score in scores]
        total += reward.weight * parts[name]
    return Judged(total, parts, why)


def long_answer_penalty(tokens: NDArray[np.int64], longest: int, margin: int) -> NDArray[np.float64]:
    """Return what answers lose by their length: nothing, then evenly up to 1 in the last *margin* tokens.

    Soft overlong punishment (DAPO, arXiv:2503.14476, equation 13).
    """
    return np.clip((longest - margin - tokens) / margin, -1.0, 0.0)
