"""What stages share that learn from the model's own answers, whatever says how good those are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.generation.sampling import Sampling
from tunesmith.methods._virtual import AbstractVirtualTokens
from tunesmith.stages._asked import Rollout
from tunesmith.stages._base import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tunesmith.generation.policy import Policy
    from tunesmith.stages._asked import Asked


class AbstractOnline(Stage):
    """Let the model that trains answer the data's prompts, and learn from what it wrote."""

    online: ClassVar[bool] = True

    sampling: Sampling = Sampling()
    """How answers are sampled."""

    num_generations: Annotated[int, Field(ge=1)] = 8
    """Answers to each prompt."""

    record_every: Annotated[int, Field(ge=1)] = 10
    """Steps between the samples that are kept in ``samples/`` and shown in the report."""

    record: Annotated[int, Field(ge=0)] = 8
    """How many answers are kept each time."""

    @property
    def asks_start(self) -> bool:
        """Whether answers are compared with the weights that training began with, which are kept for it."""
        return False

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield what sampling does not go together with."""
        yield from super().check(recipe)
        longest, limit = self.sampling.max_new_tokens, recipe.data.max_tokens
        if longest >= limit:
            problem = f"{longest} new tokens leave no room for a prompt in data.max_tokens = {limit}"
            yield Problem("stage.sampling.max_new_tokens", problem, hint="lower it, or raise data.max_tokens")
        if isinstance(recipe.method, AbstractVirtualTokens):
            problem = f"{recipe.method.type_name()} puts tokens before the text, which sampling does not do yet"
            yield Problem("method", problem, hint="use method: lora, or full")
        yield from self.sampling.check(recipe)

    def check_processes(self, processes: int) -> Iterable[Problem]:
        """Refuse several: each would have to sample the same answers, or to tell the others its own."""
        if processes > 1:
            problem = f"{self.type_name()} samples in one process, and there are {processes}"
            yield Problem("stage", problem, hint="start it without a launcher")

    def answer(self, turn: Sequence[int], asked: Sequence[Asked], policy: Policy, count: int) -> list[Rollout]:
        """Return *count* answers of *policy* to each of *asked*, group after group; *turn* seeds the sampling."""
        groups = policy.sample([(each.conversation, each.tokens) for each in asked], count, self.sampling, turn)
        pairs = [(each, completion) for each, group in zip(asked, groups, strict=True) for completion in group]
        texts = policy.read([(each.conversation, each.tokens.tolist(), c.tokens.tolist()) for each, c in pairs])
        return [Rollout(each, completion, text) for (each, completion), text in zip(pairs, texts, strict=True)]
