"""Reward model: what a model trained with stage reward says of an answer."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, PrivateAttr

from tunesmith.core.errors import Problem, UserError
from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import Judge, Score, Scorer


def _in_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


class RewardModel(Scorer):
    """Give the logistic of the reward, a number from 0 to 1: 0.5 for a reward of 0.

    Rewards of one prompt can be compared, those of different prompts less so.  The model stays in memory beside the one
    that is judged.
    """

    model: Annotated[str, AfterValidator(_in_home)]
    """A run of stage ``reward``, or a folder or Hub name of a model for sequence classification with one output."""

    _judge: Judge | None = PrivateAttr(default=None)

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield that the folder is not there."""
        if self.model.startswith((".", "/")) and not Path(self.model).is_dir():
            yield Problem(f"{self.path_in(recipe)}.model", f"no such folder: {self.model}")

    def load(self, load_judge: Callable[[str], Judge]) -> None:
        """Have the model loaded, once."""
        if self._judge is None:
            self._judge = load_judge(self.model)

    def judge_model(self) -> str | None:
        """Return the model."""
        return self.model

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score of *answer*; raise :class:`UserError` where nobody loaded the model."""
        return self.score_all([(conversation, answer)])[0]

    def score_all(self, answered: Sequence[tuple[Conversation, str]]) -> list[Score]:
        """Return the score of each answer, asked in one batch."""
        if self._judge is None:
            raise UserError(f"reward_model: {self.model} is loaded by training and evaluation; it cannot be used here")
        return [Score(_logistic(reward), f"reward {reward:.3f}") for reward in self._judge(answered)]


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(value))
