"""Reward model: one number for a dialogue, higher for the chosen ending of each pair (Bradley–Terry)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.models.heads import Head
from tunesmith.stages._base import Example, Loss
from tunesmith.stages._heads import AbstractHead, in_order, joined, whole_texts
from tunesmith.stages._pairs import refuse_others, reward_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.pack import Pack
    from tunesmith.templates.chat import ChatTemplate


class Reward(AbstractHead):
    """The loss is the negative log of the chance that the chosen ending wins, ``sigmoid(chosen - rejected - margin)``.

    A ``margin`` column says by how much the chosen ending is better (Llama 2, arXiv:2307.09288, section 3.2.2).  Only
    differences of rewards are learnt; the result is a model that transformers loads for sequence classification.
    """

    center_rewards_coefficient: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the squared sum of a pair's rewards, such as 0.01, which keeps them around 0 (arXiv:2312.09244)."""

    @property
    def head(self) -> Head:
        """One number."""
        return Head("sequence", 1)

    def examples(
        self,
        conversations: Sequence[Conversation],
        template: ChatTemplate,
        limit: int,  # noqa: ARG002 - the engine leaves out what is too long
    ) -> list[list[Example]]:
        """Return an example for each pair: both dialogues, and the margin."""
        refuse_others(conversations, self.type_name())
        chosen = whole_texts([replace(c, rejected=()) for c in conversations], template)
        rejected = whole_texts([c.ending_rejected() for c in conversations], template)
        return [
            [Example((good, bad), c.origin, (c.margin,))]
            for good, bad, c in zip(chosen, rejected, conversations, strict=True)
        ]

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the summed loss of the pairs in *pack*; what comes in is ``[m, 1]``, the rewards."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = in_order(log_probabilities, pack).view(-1, 2).unbind(1)
        margin = chosen.new_tensor([example.values[0] for example in pack.examples])
        total = -logsigmoid(chosen - rejected - margin).sum()
        if self.center_rewards_coefficient:
            total = total + self.center_rewards_coefficient * ((chosen + rejected) ** 2).sum()
        return Loss(total, reward_parts(chosen.detach(), rejected.detach()))

    def measure(self, outputs: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:  # noqa: ARG002
        """Return how often the chosen ending has the higher reward."""
        pairs = joined(outputs).reshape(-1, 2)
        return {"pair_accuracy": float((pairs[:, 0] > pairs[:, 1]).mean())}
