"""KTO: learn from answers that were liked or not, each by itself, without pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from tunesmith.core.errors import DataError, Problem
from tunesmith.stages._base import Example, Loss, Stage
from tunesmith.stages._pairs import prompt_length, with_values
from tunesmith.stages._reference import check_reference
from tunesmith.templates.learning import Learning
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.likelihoods import Likelihoods
    from tunesmith.engine.pack import Pack
    from tunesmith.templates.chat import ChatTemplate


class Answer(NamedTuple):
    """What is kept beside an answer that was judged by itself."""

    liked: bool
    weight: float
    """How much the judgement counts."""
    limit: int
    """Longest sequence, in tokens."""
    reference: float | None = None
    """Log-probability under the reference model; None before it was asked."""
    partner: int | None = None
    """The example whose answer is put after this one's prompt, to see how far the model has moved."""
    reference_partner: float | None = None
    """Log-probability of that answer there under the reference model."""
    divergence: float = 0.0
    """The step's estimate of how far the model is from the reference."""
    group_share: float = 0.0
    """The step's answers for each one that was judged as this one was."""


class KTO(Stage):
    """Make liked answers likelier and disliked ones less likely than the reference does (KTO, arXiv:2402.01306).

    The loss is the paper's (equation 8), ``w - v`` with ``v = w sigmoid(beta (r - z))`` for liked answers and
    ``w sigmoid(beta (z - r))`` for others.  Its reference point z is the mean log-ratio, 0 at least, of *mismatched*
    answers: each prompt with the answer of another example, the same one in every epoch.  It is taken over the whole
    step, before its passes and without gradients, so that it depends on no layout; TRL takes it over the rows that a
    device holds at once, each with the answer of its neighbour in the file.
    """

    rate_share = 0.05

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """The loss; ``apo_zero_unpaired`` (arXiv:2408.06266) has no reference point."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """How close to the reference to stay: more for small changes."""

    desirable_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How much each liked answer counts; with fewer of them, more: weight times number should be about equal."""

    undesirable_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How much each disliked answer counts."""

    reference: Annotated[str, Field(min_length=1)] = "start"
    """``start`` (the model as training begins), ``base`` (no adapter that goes on), or a model's path."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield what is wrong with the reference."""
        if self.reference == "none":
            yield Problem("stage.reference", "kto measures against a reference", hint="use start, base or a path")
            return
        yield from check_reference(self.reference, recipe)

    def reference_model(self) -> str | None:
        """Return which model answers are measured against."""
        return self.reference

    def examples(
        self, conversations: Sequence[Conversation], template: ChatTemplate, limit: int
    ) -> list[list[Example]]:
        """Return an example for each answer that was judged; a pair is a liked and a disliked one."""
        self._refuse_others(conversations)
        judged: list[tuple[int, Conversation, bool]] = []
        for number, each in enumerate(conversations):
            if each.rejected:
                judged += [(number, replace(each, rejected=()), True), (number, each.ending_rejected(), False)]
            else:
                judged.append((number, each, bool(each.label)))
        out: list[list[Example]] = [[] for _ in conversations]
        made = template.sequences([each for _, each, _ in judged], Learning())
        for (number, each, liked), sequences in zip(judged, made, strict=True):
            values = Answer(liked, each.label_weight, limit)
            out[number].append(Example(tuple(sequences), each.origin, values))
        return out

    def _refuse_others(self, conversations: Sequence[Conversation]) -> None:
        wrong = [each for each in conversations if each.label is None and not each.rejected]
        if wrong:
            raise DataError(
                f"{wrong[0].origin}: kto learns from answers that were liked or not, but this row has no label "
                f"({len(wrong)} of {len(conversations)} rows); give a column label with true or false, or pairs, "
                "or use stage: sft"
            )

    def size(self, examples: Sequence[Example]) -> float:
        """Return the number of answers."""
        return float(len(examples))

    def prepare(
        self, data: Sequence[Example], chosen: Sequence[int], likelihoods: Likelihoods
    ) -> list[tuple[Any, ...]]:
        """Return the reference's log-probabilities of each answer, and of another one after its prompt."""
        around = np.random.default_rng(0).permutation(len(data))
        partner = np.empty_like(around)
        partner[around] = np.roll(around, 1)
        own = [data[index] for index in chosen]
        answers = [Answer(*e.values)._replace(partner=int(partner[at])) for e, at in zip(own, chosen, strict=True)]
        other = likelihoods(_mismatched(own, answers, data))
        return [
            answer._replace(reference=sum(sums), reference_partner=moved)
            for answer, sums, (moved,) in zip(answers, likelihoods(own), other, strict=True)
        ]

    def complete(self, examples: list[Example], data: Sequence[Example], likelihoods: Likelihoods) -> list[Example]:
        """Return *examples* with the reference point of all of them."""
        answers = [Answer(*example.values) for example in examples]
        divergence = 0.0
        if self.loss_type == "kto":
            moved = [now for (now,) in likelihoods(_mismatched(examples, answers, data))]
            reference = [answer.reference_partner or 0.0 for answer in answers]
            divergence = max(0.0, float(np.mean(np.subtract(moved, reference))))
        liked = sum(answer.liked for answer in answers)
        share = {True: len(answers) / max(1, liked), False: len(answers) / max(1, len(answers) - liked)}
        return [
            with_values(e, a._replace(divergence=divergence, group_share=share[a.liked]))
            for e, a in zip(examples, answers, strict=True)
        ]

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the summed loss of the answers in *pack*."""
        import torch

        answers = [Answer(*example.values) for example in pack.examples]
        place = [number for number, example in enumerate(pack.examples) for _ in example.sequences]
        places = pack.sequence.new_tensor(place)[pack.sequence]  # of each prediction
        sums = log_probabilities.new_zeros(len(answers)).index_add(0, places, pack.weight * log_probabilities)
        # before it was asked, in the checks, the model itself is the reference, as it is at the start
        unknown = any(answer.reference is None for answer in answers)
        ratio = sums - (sums.detach() if unknown else sums.new_tensor([answer.reference for answer in answers]))
        point = sums.new_tensor([answer.divergence for answer in answers])
        liked = torch.tensor([answer.liked for answer in answers], device=sums.device)
        weight = torch.where(liked, self.desirable_weight, self.undesirable_weight)
        weight = weight * sums.new_tensor([answer.weight for answer in answers])
        right = torch.where(liked, ratio - point, point - ratio)
        share = sums.new_tensor([answer.group_share for answer in answers])
        reward = self.beta * ratio.detach() * share
        parts: dict[str, Tensor | float] = {
            "rewards/chosen": (reward * liked).sum(),
            "rewards/rejected": (reward * ~liked).sum(),
            "rewards/margin": (reward * liked).sum() - (reward * ~liked).sum(),
            "rewards/accuracy": (right > 0).float().sum(),
            "divergence": point.sum(),
        }
        return Loss((weight * (1 - (self.beta * right).sigmoid())).sum(), parts)


def _mismatched(examples: Sequence[Example], answers: Sequence[Answer], data: Sequence[Example]) -> list[Example]:
    """Return each example's prompt with the answer of its partner in *data*."""
    out = []
    for example, answer in zip(examples, answers, strict=True):
        assert answer.partner is not None, "the reference was asked before the first step"
        prompt, other = example.sequences[-1], data[answer.partner].sequences[-1]
        begin, first = prompt_length(prompt), prompt_length(other)
        tokens = np.concatenate((prompt.tokens[:begin], other.tokens[first:]))
        weight = np.concatenate((np.zeros(begin, np.float32), other.weight[first:]))
        out.append(Example((TokenSequence(tokens, weight).cut(answer.limit),)))
    return out
