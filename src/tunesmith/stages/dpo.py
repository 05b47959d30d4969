"""Direct preference optimisation: prefer the chosen ending of a pair, measured against a reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tunesmith.core.errors import Problem
from tunesmith.stages._base import Example
from tunesmith.stages._pair_losses import BY_LENGTH, LOSSES, ON_MARGINS, SMOOTHED, SORTED, Ratios, divergence_score
from tunesmith.stages._pairs import AbstractPairs, Judged, Pair, PairSums, ask_reference, with_values
from tunesmith.stages._reference import check_reference
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.likelihoods import Likelihoods
    from tunesmith.templates.chat import ChatTemplate

LossName = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "aot",
    "aot_unpaired",
]


_ALPHA, _TEMPERATURE = 0.5, 0.05


class DPO(AbstractPairs):
    """Raise the chosen ending's likelihood over the rejected one's, as far as the reference model allows (DPO).

    The reference's log-probabilities are computed once, before the first step, and kept in the run's folder.
    """

    loss_type: LossName | Annotated[dict[LossName, Annotated[float, Field(gt=0)]], Field(min_length=1)] = "sigmoid"
    """The loss, or several with their weights, such as ``{sigmoid: 0.8, bco_pair: 0.2}``; the names are TRL's."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """How close to the reference to stay: more for small changes; for ``ipo`` its tau."""

    reference: Annotated[str, Field(min_length=1)] = "start"
    """``start`` (the model as training begins), ``base`` (no adapter that goes on), a model's path, or ``none``."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs taken to be the wrong way round: 0.1 for noisy ``sigmoid`` and ``robust``, 1e-3 for exo_pair."""

    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """How distance from the reference is measured (f-DPO)."""

    divergence_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = _ALPHA
    """The alpha of ``alpha_divergence``."""

    discopop_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = _TEMPERATURE
    """The temperature of ``discopop``."""

    tail_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How much the longer ending's tokens count beyond the shorter's length; below 1 against wordiness (LD-DPO)."""

    @property
    def losses(self) -> dict[str, float]:
        """The losses with their weights."""
        asked = {self.loss_type: 1.0} if isinstance(self.loss_type, str) else self.loss_type
        return {str(name): weight for name, weight in asked.items()}

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield settings that the losses asked for do not take, and what is wrong with the reference."""
        yield from check_reference(self.reference, recipe)
        asked = self.losses.keys()
        if self.label_smoothing and not asked & set(SMOOTHED):
            yield self._useless("label_smoothing", SMOOTHED)
        if self.divergence != "reverse_kl" and not asked <= set(ON_MARGINS):
            yield self._useless("divergence", ON_MARGINS)
        if self.discopop_temperature != _TEMPERATURE and "discopop" not in asked:
            yield self._useless("discopop_temperature", ("discopop",))
        if "exo_pair" in asked and not self.label_smoothing:
            yield Problem("stage.label_smoothing", "exo_pair needs some", hint="set it to 1e-3, as its paper does")
        if self.divergence != "alpha_divergence" and self.divergence_alpha != _ALPHA:
            hint = "leave it out, or set stage.divergence: alpha_divergence"
            yield Problem("stage.divergence_alpha", f"means nothing to {self.divergence}", hint=hint)
        if self.tail_weight != 1 and (self.sft_weight or asked & set(BY_LENGTH)):
            why = "would change what lengths and imitation count, too"
            yield Problem("stage.tail_weight", why, hint=f"leave out sft_weight, {' and '.join(BY_LENGTH)}, or it")
        if asked >= set(SORTED):
            yield Problem("stage.loss_type", "aot and aot_unpaired sort the step in two ways", hint="keep one of them")

    def _useless(self, setting: str, losses: Sequence[str]) -> Problem:
        hint = f"leave it out, or use stage.loss_type: {', '.join(losses)}"
        return Problem(f"stage.{setting}", f"is not for {', '.join(self.losses)}", hint=hint)

    def reference_model(self) -> str | None:
        """Return which model the pairs are measured against; None for ``none``."""
        return None if self.reference == "none" else self.reference

    def prepare(
        self, data: Sequence[Example], chosen: Sequence[int], likelihoods: Likelihoods
    ) -> list[tuple[Any, ...]]:
        """Return the pairs with the reference's log-probabilities."""
        return ask_reference([data[index] for index in chosen], likelihoods)

    def examples(
        self, conversations: Sequence[Conversation], template: ChatTemplate, limit: int
    ) -> list[list[Example]]:
        """Return an example for each pair; tokens beyond the shorter ending's length weigh as the settings say."""
        made = super().examples(conversations, template, limit)
        if self.tail_weight == 1:
            return made
        return [[_lighten(example, self.tail_weight) for example in each] for each in made]

    def complete(self, examples: list[Example], data: Sequence[Example], likelihoods: Likelihoods) -> list[Example]:
        """Return *examples* that know what the losses that sort a step compare each of them with."""
        examples = super().complete(examples, data, likelihoods)
        if not self.losses.keys() & set(SORTED):
            return examples
        pairs = [Pair(*example.values) for example in examples]
        now = [Pair(*values) for values in ask_reference(examples, likelihoods)]
        policy = np.array([(pair.reference_chosen, pair.reference_rejected) for pair in now], np.float64)
        reference = np.array([(p.reference_chosen or 0.0, p.reference_rejected or 0.0) for p in pairs])
        matches = _match(policy, reference, paired="aot" in self.losses)
        return [
            with_values(example, pair._replace(match_chosen=chosen, match_rejected=rejected))
            for example, pair, (chosen, rejected) in zip(examples, pairs, matches.tolist(), strict=True)
        ]

    def judge(self, sums: PairSums) -> Judged:
        """Return the weighted sum of the losses of each pair; rewards are log-ratios times beta."""
        chosen, rejected = sums.chosen, sums.rejected
        if self.reference != "none":
            # before it was asked, in the checks, the model itself is the reference, as it is at the start
            chosen = chosen - sums.of_each("reference_chosen", chosen)
            rejected = rejected - sums.of_each("reference_rejected", rejected)
        ratios = Ratios(
            chosen=chosen,
            rejected=rejected,
            chosen_score=divergence_score(chosen, self.divergence, self.divergence_alpha),
            rejected_score=divergence_score(rejected, self.divergence, self.divergence_alpha),
            chosen_length=sums.chosen_length,
            rejected_length=sums.rejected_length,
            match_chosen=sums.of_each("match_chosen", rejected),
            match_rejected=sums.of_each("match_rejected", chosen),
            beta=self.beta,
            smoothing=self.label_smoothing,
            temperature=self.discopop_temperature,
        )
        losses = sum(weight * LOSSES[name](ratios) for name, weight in self.losses.items())
        return Judged(losses, self.beta * chosen, self.beta * rejected)  # type: ignore[arg-type]  # of tensors


def _lighten(example: Example, weight: float) -> Example:
    """Return a pair whose tokens beyond the shorter ending's length count *weight* times as much."""
    pair = Pair(*example.values)
    sides = example.sequences[: pair.chosen], example.sequences[pair.chosen :]
    shared = min(sum(sequence.trained for sequence in side) for side in sides)
    out = []
    for side in sides:
        seen = 0
        for sequence in side:
            place = seen + np.cumsum(sequence.weight != 0)
            factors = np.where(place > shared, np.float32(weight), np.float32(1))
            out.append(TokenSequence(sequence.tokens, sequence.weight * factors))
            seen += sequence.trained
    return Example(tuple(out), example.origin, example.values)


def _match(policy: np.ndarray, reference: np.ndarray, *, paired: bool) -> np.ndarray:
    """Return ``[P, 2]`` what the chosen and the rejected ending of each pair are compared with; inputs are ``[P, 2]``.

    *paired*: the model's margin with the reference's of the same rank.  Else chosen log-ratios with the rejected ones
    of the same rank, and the other way round.
    """
    if paired:
        margin, wanted = policy[:, 0] - policy[:, 1], np.sort(reference[:, 0] - reference[:, 1])
        # a loss takes log-ratios: what it then subtracts is the difference of the two references
        other = wanted[np.argsort(np.argsort(margin, kind="stable"))] - (reference[:, 0] - reference[:, 1])
        return np.stack((other, other), 1)
    ratio = policy - reference
    ranks = np.argsort(np.argsort(ratio, 0, kind="stable"), 0)
    ordered = np.sort(ratio, 0)
    return np.stack((ordered[ranks[:, 0], 1], ordered[ranks[:, 1], 0]), 1)
