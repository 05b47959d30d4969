"""GKD, on-policy distillation: a teacher corrects what the model writes, token by token (arXiv:2306.13649)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from tunesmith.engine.example import Example
from tunesmith.stages._asked import Asked, as_text, conversation_of
from tunesmith.stages._base import Experienced, Loss
from tunesmith.stages._online import AbstractOnline
from tunesmith.stages._taught import AbstractTaught
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.pack import Pack
    from tunesmith.generation.policy import Policy
    from tunesmith.stages._asked import Rollout
    from tunesmith.templates.chat import ChatTemplate

# turns the seed, so that who answers and what is answered are drawn apart
_WHO_ANSWERS = 1


class _Part(NamedTuple):
    """What an example of a step is, kept beside it."""

    own: bool
    """Whether the model wrote the answer; else it is the data's."""
    scale: float
    """The tokens of the step for each token of its kind: makes sums over the step means over the kind."""


class GKD(AbstractTaught, AbstractOnline):
    """Minimise the divergence from a teacher at each token of the model's own answers and of the data's.

    A student that only ever reads good answers is not told what to do after its own mistakes; here it is.  Each example
    of a step is drawn by itself, by the seed and the step alone: with the probability ``student_share`` the model
    answers its last prompt, and every token of the answer is learnt; else the data's answers are, as ``distill`` does.
    No gradient goes through the sampling, whose temperature is not that of the divergence.  Held-out conversations are
    judged by the divergence on the data's answers: a yardstick that stays the same while the model's own answers
    change, and is that of ``distill``.
    """

    student_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that the model's own answer is learnt in place of the data's: 1 fully on-policy, 0 as ``distill``."""

    num_generations: Annotated[int, Field(ge=1)] = 1
    """Own answers to each prompt that the model answers."""

    @model_validator(mode="before")
    @classmethod
    def _no_kept_teacher(cls, values: Any) -> Any:
        if isinstance(values, dict) and "top_k" in values:
            raise ValueError("top_k: a teacher that is asked beforehand cannot know what the student will write")
        return values

    # --- examples

    def examples(
        self, conversations: Sequence[Conversation], template: ChatTemplate, limit: int
    ) -> list[list[Example]]:
        """Return the data's answers, each with its conversation, where the prompt leaves room for an own answer."""
        made = super().examples(conversations, template, limit)
        room = limit - self.sampling.max_new_tokens
        prompts = [len(prompt) for prompt in template.prompts(conversations)]
        return [
            [replace(e, values=(prompt, as_text(c))) for e in each] if prompt <= room else []
            for each, c, prompt in zip(made, conversations, prompts, strict=True)
        ]

    def stand_ins(self, example: Example, most: int) -> list[Example]:  # noqa: ARG002 - each answer is an example
        """Return the data's example, or as many own answers of the longest length where those are more."""
        prompt = np.resize(example.sequences[-1].tokens, example.values[0]).tolist()
        longest = self.sampling.max_new_tokens
        answers = [
            # no two alike, or a pack would compute them once
            Example((TokenSequence.trained_from([*prompt, *[number] * longest], len(prompt)),), example.origin)
            for number in range(self.num_generations)
        ]
        own = self.student_share > 0 and sum(answer.tokens for answer in answers) > example.tokens
        return answers if own or self.student_share == 1 else [example]

    # --- what a step learns from

    def experience(self, turn: Sequence[int], prompts: Sequence[Example], policy: Policy) -> Experienced:
        """Return *prompts*, some of them with the model's own answers; *turn* and the policy's seed say which."""
        chances = np.random.default_rng([policy.seed, *turn, _WHO_ANSWERS]).random(len(prompts))
        own = [bool(chance < self.student_share) for chance in chances]
        asked = [example for example, answers in zip(prompts, own, strict=True) if answers]
        rollouts = self.roll_out(turn, asked, policy, self.num_generations) if asked else []
        written = iter(rollouts)
        found: list[tuple[Example, bool]] = []
        for example, answers in zip(prompts, own, strict=True):
            if answers:
                answer = [next(written) for _ in range(self.num_generations)]
                found += [(Example((each.sequence(),), example.origin), True) for each in answer]
            else:
                found.append((example, False))
        examples = _with_parts(found)
        return Experienced(examples, {"own_answers": len(asked) / len(prompts)}, rollouts)

    def roll_out(self, turn: Sequence[int], prompts: Sequence[Example], policy: Policy, count: int) -> list[Rollout]:
        """Return *count* answers to each prompt, group after group."""
        talks = [conversation_of(example) for example in prompts]
        tokens = policy.template.prompts(talks)
        asked = [Asked(np.array(ids, np.int32), c, True) for ids, c in zip(tokens, talks, strict=True)]
        return self.answer(turn, asked, policy, count)

    # --- what is minimised

    def divergence_loss(self, apart: Tensor, log_p: Tensor, pack: Pack) -> Loss:  # noqa: ARG002
        """Return the divergences; of a step, their means on own answers and on the data's are told apart."""
        weighed = pack.weight * apart
        found = weighed.detach()
        parts: dict[str, Tensor] = {"divergence": found.sum()}
        if any(isinstance(part, _Part) for part in pack.examples[0].values):
            kinds = [example.values[0] for example in pack.examples for _ in example.sequences]
            for own, name in ((True, "divergence_own"), (False, "divergence_data")):
                if any(kind.own == own for kind in kinds):
                    scales = found.new_tensor([kind.scale if kind.own == own else 0.0 for kind in kinds])
                    parts[name] = (scales[pack.sequence] * found).sum()
        return Loss(weighed.sum(), parts)


def _with_parts(found: Sequence[tuple[Example, bool]]) -> list[Example]:
    """Return the examples of a step, of which it is said whether the model wrote the answer, with that beside them."""
    weights = {
        kind: sum(s.weight_total for e, own in found for s in e.sequences if own == kind) for kind in (True, False)
    }
    total = sum(weights.values())
    return [replace(e, values=(_Part(own, total / weights[own]),)) for e, own in found]
