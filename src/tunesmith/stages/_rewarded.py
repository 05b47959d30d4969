"""What stages share that learn from what the model's own answers earn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from tunesmith.core.errors import Problem
from tunesmith.engine.example import Example
from tunesmith.stages._asked import Asked, ask
from tunesmith.stages._base import Experienced, Loss
from tunesmith.stages._credit import Credit, PackCredit, pack_credit
from tunesmith.stages._online import AbstractOnline
from tunesmith.stages._rewards import Reward, judge, long_answer_penalty
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.model import PackModel
    from tunesmith.engine.pack import Pack
    from tunesmith.generation.policy import Policy
    from tunesmith.scoring import Scorer
    from tunesmith.stages._asked import Rollout
    from tunesmith.templates.chat import ChatTemplate


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The answers of a step, the same number to each prompt, and what is known of them.

    Legend: P prompts, G answers to each; lists of token-wise arrays have one for each answer, group after group.
    """

    reward: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]
    """``[P, G]`` for each score, before its weight."""
    lengths: list[int]
    counted: list[bool]
    sampled: list[NDArray[np.float32]]
    old: list[NDArray[np.float32]] | None
    start: list[NDArray[np.float32]] | None
    value: list[NDArray[np.float32]] | None = None

    def log_ratios(self) -> list[NDArray[np.float32]]:
        """Return how much likelier each token was than at the start of training: estimates of the divergence."""
        assert self.start is not None
        return [now - start for now, start in zip(self.old or self.sampled, self.start, strict=True)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


class AbstractRewarded(AbstractOnline):
    """Learn from the model's own answers to the data's prompts, by what they earn.

    ``schedule.batch_size`` counts prompts.  What the data answer is not learnt; scores may compare with it.
    """

    rate_share: ClassVar[float] = 0.05  # TRL's 1e-6 where imitation takes 2e-5

    rewards: Annotated[list[Reward], BeforeValidator(_as_list), Field(min_length=1)]
    """Scores that answers are rewarded by, such as ``[{score: length_match, weight: 0.5}]``; their sum counts."""

    num_iterations: Annotated[int, Field(ge=1)] = 1
    """Steps in a row that learn from the same answers; with more than 1 they are that many steps old in the last."""

    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the weights of the start; 0 does not compare with them."""

    mask_truncated_completions: bool = False
    """Learn nothing from answers that were cut at ``sampling.max_new_tokens``."""

    overlong_margin: Annotated[int, Field(ge=0)] = 0
    """Answers that end in so many last tokens before the longest length lose reward, up to 1; 0 takes none away."""

    @property
    def steps_per_batch(self) -> int:
        """Steps that learn from the same prompts."""
        return self.num_iterations

    @property
    def asks_start(self) -> bool:
        """Whether answers are compared with the weights of the start: where straying from them costs something."""
        return self.beta > 0

    @property
    def asks_old(self) -> bool:
        """Whether log-probabilities are taken before the first step: later ones are measured against them."""
        return self.num_iterations > 1

    @property
    def reward_scores(self) -> list[Scorer]:
        """The scores that answers are rewarded by."""
        return [reward.score for reward in self.rewards]

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield what does not go together."""
        yield from super().check(recipe)
        longest = self.sampling.max_new_tokens
        if self.overlong_margin > longest:
            problem = f"{self.overlong_margin} tokens are more than an answer can have ({longest})"
            yield Problem("stage.overlong_margin", problem, hint="use a fifth of stage.sampling.max_new_tokens")
        if recipe.evaluation.patience and not recipe.evaluation.examples:
            problem = "0 held-out prompts are answered, so that there is no reward to watch"
            yield Problem("evaluation.examples", problem, hint="raise it, or leave evaluation.patience out")
        for score in self.reward_scores:
            yield from score.check(recipe)

    def begin(self, model: PackModel) -> None:
        """Let what is learnt have the temperature of what is sampled."""
        model.temperature = self.sampling.temperature

    def examples(
        self, conversations: Sequence[Conversation], template: ChatTemplate, limit: int
    ) -> list[list[Example]]:
        """Return the prompts that leave room for the longest answer within *limit* tokens."""
        longest = self.sampling.max_new_tokens
        return ask(conversations, template, limit - longest, longest)

    def stand_ins(self, example: Example, most: int) -> list[Example]:
        """Return a group of answers of the longest length, in parts of *most* tokens."""
        prompt = example.sequences[0].tokens[: example.values[0]].tolist()
        longest = self.sampling.max_new_tokens
        answers = [
            # no two alike, or a pack would compute them once
            TokenSequence.trained_from([*prompt, *[number] * longest], len(prompt))
            for number in range(self.num_generations)
        ]
        at_once = max(1, (most - len(prompt)) // longest)
        starts = range(0, len(answers), at_once)
        return [Example(tuple(answers[at : at + at_once]), example.origin) for at in starts]

    # --- what a step learns from

    def experience(self, turn: Sequence[int], prompts: Sequence[Example], policy: Policy) -> Experienced:
        """Return what *policy* answers to *prompts*, with the credit of each token; *turn* seeds the sampling.

        The answers to a prompt are one example, so that they are in one pass, which computes the prompt once.
        """
        rollouts = self.roll_out(turn, prompts, policy, self.num_generations)
        batch = self.batch(rollouts, policy)
        advantages = self.advantages(batch)
        examples = self.make_examples(rollouts, batch, advantages, policy.tokens_per_pass)
        return Experienced(examples, self.figures(batch), rollouts)

    def roll_out(self, turn: Sequence[int], prompts: Sequence[Example], policy: Policy, count: int) -> list[Rollout]:
        """Return *count* judged answers to each prompt, group after group."""
        answers = self.answer(turn, [Asked.of(example) for example in prompts], policy, count)
        judged = judge(self.rewards, [(each.asked.conversation, each.text) for each in answers])
        total, parts = judged.total, dict(judged.parts)
        if self.overlong_margin:
            tokens = np.array([len(each.completion.tokens) for each in answers])
            parts["overlong"] = long_answer_penalty(tokens, self.sampling.max_new_tokens, self.overlong_margin)
            total = total + parts["overlong"]
        return [
            replace(
                each,
                reward=float(total[index]),
                parts={name: float(values[index]) for name, values in parts.items()},
                why={name: reasons[index] for name, reasons in judged.why.items()},
            )
            for index, each in enumerate(answers)
        ]

    def batch(self, rollouts: Sequence[Rollout], policy: Policy) -> Batch:
        """Return *rollouts* as arrays, with the log-probabilities that the loss asks for."""
        shape = (-1, self.num_generations)
        sequences = [rollout.sequence() for rollout in rollouts]
        return Batch(
            reward=np.array([r.reward for r in rollouts]).reshape(shape),
            parts={n: np.array([r.parts[n] for r in rollouts]).reshape(shape) for n in rollouts[0].parts},
            lengths=[len(r.completion.tokens) for r in rollouts],
            counted=[r.completion.finished or not self.mask_truncated_completions for r in rollouts],
            sampled=[r.completion.log_probabilities for r in rollouts],
            old=policy.log_probabilities(sequences) if self.asks_old else None,
            start=policy.log_probabilities(sequences, at_start=True) if self.asks_start else None,
        )

    def advantages(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Return how much better than expected each token of each answer did."""
        raise NotImplementedError

    def value_targets(self, batch: Batch) -> list[NDArray[np.float32]] | None:  # noqa: ARG002
        """Return what a value head should have said before each token; None without such a head."""
        return None

    def step_size(self, batch: Batch) -> float:
        """Return what the loss over *batch* is divided by."""
        raise NotImplementedError

    def make_examples(
        self, rollouts: Sequence[Rollout], batch: Batch, advantages: Sequence[NDArray[np.float32]], most: int
    ) -> list[Example]:
        """Return the answers to each prompt as an example, or as several where they have more than *most* tokens.

        Answers that teach nothing are left out: where all did alike nothing is to learn, and the loss that is missed
        is 0.  The step's size counts them.
        """
        groups = [g for g in self._cut(rollouts, most) if self.asks_start or any(_teaches(advantages[at]) for at in g)]
        # a step of nothing is no step
        return self.with_credit(groups or self._cut(rollouts, most)[:1], rollouts, batch, advantages)

    def with_credit(
        self,
        groups: Sequence[Sequence[int]],
        rollouts: Sequence[Rollout],
        batch: Batch,
        advantages: Sequence[NDArray[np.float32]],
    ) -> list[Example]:
        """Return an example for each of *groups*, which are indices of *rollouts*."""
        size, targets = self.step_size(batch), self.value_targets(batch)

        def of(group: Sequence[int], arrays: Sequence[NDArray[np.float32]] | None) -> Any:
            return None if arrays is None else np.concatenate([arrays[at] for at in group])

        tokens = sum(batch.lengths[at] for group in groups for at in group if batch.counted[at])
        examples = []
        for group in groups:
            credit = Credit(
                advantage=of(group, advantages),
                sampled=of(group, batch.sampled),
                counted=np.concatenate([np.full(batch.lengths[at], batch.counted[at], np.float32) for at in group]),
                old=of(group, batch.old),
                start=of(group, batch.start),
                value=of(group, batch.value),
                target=of(group, targets),
                size=size / len(groups),
                each_token=size / max(1, tokens),
            )
            origin = rollouts[group[0]].asked.conversation.origin
            examples.append(Example(tuple(rollouts[at].sequence() for at in group), origin, (credit,)))
        return examples

    def _cut(self, rollouts: Sequence[Rollout], most: int) -> list[list[int]]:
        """Return the indices of each group; of one whose tokens are more than *most*, in several parts."""
        out: list[list[int]] = []
        for first in range(0, len(rollouts), self.num_generations):
            part: list[int] = []
            tokens = prompt = len(rollouts[first].asked.tokens)
            for at in range(first, first + self.num_generations):
                more = len(rollouts[at].completion.tokens)
                if part and tokens + more > most:
                    out.append(part)
                    part, tokens = [], prompt
                part.append(at)
                tokens += more
            out.append(part)
        return out

    def again(self, examples: Sequence[Example]) -> list[Example]:
        """Return *examples* for a step whose weights are no longer those that sampled them."""
        return [Example(e.sequences, e.origin, (replace(e.values[0], fresh=False),)) for e in examples]

    def figures(self, batch: Batch) -> dict[str, float]:
        """Return what is worth logging of a step's answers."""
        spread = batch.reward.std(1)
        measured = {
            "reward": float(batch.reward.mean()),
            **{f"reward_{name}": float(values.mean()) for name, values in batch.parts.items()},
            "reward_spread": float(spread.mean()),
            "groups_alike": float((spread < 1e-8).mean()),
            # the mean surprise of sampled tokens estimates the entropy
            "entropy": -float(np.concatenate(batch.sampled).mean()),
        }
        if batch.start is not None:
            measured["divergence"] = float(np.concatenate(batch.log_ratios()).mean())
        return measured

    # --- what is minimised

    def size(self, examples: Sequence[Example]) -> float:
        """Return the step's size; of prompts the tokens of the data's answers, 0 where some have none."""
        if examples[0].values and isinstance(examples[0].values[0], Credit):
            return float(sum(example.values[0].size for example in examples))
        if not all(example.values and example.values[1] for example in examples):
            return 0.0
        return float(sum(sequence.weight_total for example in examples for sequence in example.sequences))

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the loss of sampled answers; of prompts, that of the data's answers."""
        credit = pack_credit(pack)
        values = log_probabilities[:, 1] if log_probabilities.dim() == 2 else None
        log_p = log_probabilities if values is None else log_probabilities[:, 0]
        if credit is None:
            return Loss(-log_p.sum(), {})
        total, parts = self.policy_loss(log_p, credit)
        if values is not None:
            more, parts["value_loss"] = self.value_loss(values, credit)
            total = total + more
        if credit.fresh:
            parts["sampler_gap"] = credit.mean((log_p - credit.sampled).abs())
        return Loss(total, parts)

    def value_loss(self, values: Tensor, credit: PackCredit) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a value head as it is minimised, and to log."""
        raise NotImplementedError

    def policy_loss(self, log_p: Tensor, credit: PackCredit) -> tuple[Tensor, dict[str, Any]]:
        """Return the summed loss of sampled answers, and sums worth logging."""
        raise NotImplementedError


def _teaches(advantage: NDArray[np.float32]) -> bool:
    # the mean of equal rewards may round to another number
    return bool(np.abs(advantage).max() > 1e-6)


class AbstractClipped(AbstractRewarded):
    """Learn with PPO's clipped ratios."""

    epsilon: Annotated[float, Field(ge=0)] = 0.2
    """Ratios to the sampling weights below 1 minus this teach nothing more."""

    epsilon_high: Annotated[float, Field(ge=0)] | None = None
    """Ratios above 1 plus this teach nothing more; left out, ``epsilon``. DAPO takes 0.28."""

    @property
    def high(self) -> float:
        """The upper bound."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high
