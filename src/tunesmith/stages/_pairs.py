"""What stages share that learn from pairs: a chosen and a rejected ending of one prompt.

Legend: M predictions of a pack, P its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from tunesmith.core.errors import DataError
from tunesmith.stages._base import Example, Loss, Stage
from tunesmith.templates.learning import Learning
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.likelihoods import Likelihoods
    from tunesmith.engine.pack import Pack
    from tunesmith.templates.chat import ChatTemplate


class Pair(NamedTuple):
    """What is kept beside the sequences of a pair: first those of the chosen ending, then those of the rejected one.

    An ending is several sequences where the template rewrites history between its turns.  What follows the two is the
    prompt, where that is learnt, too: a sequence that the chosen one begins with costs no token.
    """

    chosen: int
    """Sequences of the chosen ending."""
    rejected: int
    """Sequences of the rejected ending."""
    reference_chosen: float | None = None
    """Log-probability of the chosen ending under the reference model; None before it was asked."""
    reference_rejected: float | None = None
    token_share: float = 0.0
    """The step's pairs for each of its imitated tokens: makes sums over tokens means over them."""
    match_chosen: float | None = None
    """What the losses that sort a step compare the chosen ending with …"""
    match_rejected: float | None = None
    """… and the rejected one."""


@dataclass(frozen=True)
class PairSums:
    """What a pass says of its pairs; every tensor is ``[P]``."""

    chosen: Tensor
    """Log-probability of the chosen ending, each token by its weight."""
    rejected: Tensor
    chosen_length: Tensor
    """Sum of the weights: the number of tokens, where none says otherwise."""
    rejected_length: Tensor
    imitated: Tensor
    """Log-probability of what is imitated: the chosen ending, and the prompt where that is learnt."""
    pairs: Sequence[Pair]

    def of_each(self, name: str, otherwise: Tensor) -> Tensor:
        """Return the field *name* of the pairs; *otherwise*, without a gradient, where nobody was asked."""
        values = [getattr(pair, name) for pair in self.pairs]
        if any(value is None for value in values):
            return otherwise.detach()
        return otherwise.new_tensor(values)


def sum_pairs(log_probabilities: Tensor, pack: Pack) -> PairSums:
    """Return the sums over the endings of each pair in *pack*; ``log_probabilities`` is ``[M]``."""
    pairs = [Pair(*example.values) for example in pack.examples]
    # which of three sums each sequence belongs to: chosen, rejected, prompt
    place = []
    for number, (pair, example) in enumerate(zip(pairs, pack.examples, strict=True)):
        counts = (pair.chosen, pair.rejected, len(example.sequences) - pair.chosen - pair.rejected)
        place += [3 * number + side for side, count in enumerate(counts) for _ in range(count)]
    places = pack.sequence.new_tensor(place)[pack.sequence]  # of each prediction
    empty = log_probabilities.new_zeros(3 * len(pairs))
    sums = empty.index_add(0, places, pack.weight * log_probabilities).view(-1, 3)
    lengths = empty.index_add(0, places, pack.weight).view(-1, 3).clamp_min(1e-6)
    return PairSums(sums[:, 0], sums[:, 1], lengths[:, 0], lengths[:, 1], sums[:, 0] + sums[:, 2], pairs)


class Judged(NamedTuple):
    """The loss of each pair of a pass, and the rewards that it gives the two endings; each ``[P]``."""

    losses: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


class AbstractPairs(Stage):
    """A loss on each pair, as a mean over the pairs of a step, with imitation of the chosen endings beside it.

    Logged are the mean rewards of both endings, their margin, and how often the chosen one has the higher reward.
    """

    rate_share = 0.05

    sft_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the chosen endings' negative log-likelihood, a mean over their tokens; 1 keeps answers fluent."""

    def judge(self, sums: PairSums) -> Judged:
        """Return the loss of each pair without imitation, and its rewards."""
        raise NotImplementedError

    def examples(
        self,
        conversations: Sequence[Conversation],
        template: ChatTemplate,
        limit: int,  # noqa: ARG002 - the engine cuts what is too long
    ) -> list[list[Example]]:
        """Return an example for each pair: the sequences of both endings, which begin with one prompt."""
        refuse_others(conversations, self.type_name())
        learning = Learning()
        chosen = template.sequences([replace(c, rejected=()) for c in conversations], learning)
        rejected = template.sequences([c.ending_rejected() for c in conversations], learning)
        return [
            [Example((*good, *bad, *self.more_sequences(good)), c.origin, Pair(len(good), len(bad)))]
            for good, bad, c in zip(chosen, rejected, conversations, strict=True)
        ]

    def more_sequences(self, chosen: Sequence[TokenSequence]) -> Sequence[TokenSequence]:  # noqa: ARG002
        """Return sequences to imitate beside the *chosen* ones."""
        return ()

    def size(self, examples: Sequence[Example]) -> float:
        """Return the number of pairs."""
        return float(len(examples))

    def complete(
        self,
        examples: list[Example],
        data: Sequence[Example],  # noqa: ARG002
        likelihoods: Likelihoods,  # noqa: ARG002
    ) -> list[Example]:
        """Return *examples* that know how many tokens their step imitates."""
        if not self.sft_weight:
            return examples
        total = sum(_imitated(example) for example in examples)
        share = len(examples) / total if total else 0.0
        return [with_values(e, Pair(*e.values)._replace(token_share=share)) for e in examples]

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the summed loss of the pairs in *pack*."""
        sums = sum_pairs(log_probabilities, pack)
        losses, chosen, rejected = self.judge(sums)
        total, parts = losses.sum(), reward_parts(chosen.detach(), rejected.detach())
        if self.sft_weight:
            imitation = -(sums.imitated * sums.of_each("token_share", sums.chosen)).sum()
            total, parts["sft_loss"] = total + self.sft_weight * imitation, imitation.detach()
        return Loss(total, parts)


def refuse_others(conversations: Sequence[Conversation], name: str) -> None:
    """Raise :class:`DataError` for *conversations* that are no pairs, which the stage *name* learns from."""
    wrong = [conversation for conversation in conversations if not conversation.rejected]
    if not wrong:
        return
    first = wrong[0]
    if first.text is not None:
        what, instead = "is plain text", "use stage: pretrain"
    elif first.label is not None:
        what, instead = "has one answer and a label", "use stage: kto, which learns from answers judged alone"
    else:
        what, instead = "has one answer", "give each row chosen and rejected, or use stage: sft"
    raise DataError(
        f"{first.origin}: {name} learns from pairs, but this row {what} "
        f"({len(wrong)} of {len(conversations)} rows); {instead}"
    )


def with_values(example: Example, values: tuple[Any, ...]) -> Example:
    """Return *example* with other values beside it."""
    return Example(example.sequences, example.origin, values)


def _imitated(example: Example) -> float:
    """Return the summed weight of what is imitated of a pair."""
    pair = Pair(*example.values)
    behind = pair.chosen + pair.rejected
    return sum(s.weight_total for s in (*example.sequences[: pair.chosen], *example.sequences[behind:]))


def prompt_length(sequence: TokenSequence) -> int:
    """Return how many tokens stand before the first trained one."""
    return int(np.flatnonzero(sequence.weight)[0])


def reward_parts(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor | float]:
    """Return the sums that every stage on pairs logs, of rewards ``[P]``."""
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margin": (chosen - rejected).sum(),
        "rewards/accuracy": (chosen > rejected).float().sum(),
    }


def ask_reference(examples: Sequence[Example], likelihoods: Likelihoods) -> list[tuple[Any, ...]]:
    """Return the values of pairs with the log-probabilities that *likelihoods* give their endings."""
    out: list[tuple[Any, ...]] = []
    for example, sums in zip(examples, likelihoods(examples), strict=True):
        pair = Pair(*example.values)
        middle = pair.chosen + pair.rejected
        chosen, rejected = sum(sums[: pair.chosen]), sum(sums[pair.chosen : middle])
        out.append(pair._replace(reference_chosen=chosen, reference_rejected=rejected))
    return out
