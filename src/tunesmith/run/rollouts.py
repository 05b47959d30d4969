"""Make each step's examples of the model's own answers, keep samples of them, and watch for what goes wrong in them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import RecipeError
from tunesmith.data.conversation import Conversation, Origin
from tunesmith.engine.example import Example
from tunesmith.engine.experience import Gathered
from tunesmith.run.head_evaluation import RewardJudge
from tunesmith.run.rollout_watch import RolloutWatch
from tunesmith.run.sampling_server import make_remote_sampler
from tunesmith.scoring import prepare_scores
from tunesmith.stages._asked import conversation_of
from tunesmith.stages._credit import Credit
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.events import Event
    from tunesmith.generation.policy import Policy
    from tunesmith.generation.sampling import Sampling
    from tunesmith.run.settle import Settled
    from tunesmith.stages._asked import Rollout

# turns of the seed: what is sampled to learn from, and what is sampled to be judged by
_LEARN, _JUDGE = 0, 1


class Rollouts:
    """The experience of an online stage; see :class:`tunesmith.engine.experience.Experience`."""

    def __init__(self, stage: Any, policy: Policy, learnt: Sequence[Conversation], judged: int) -> None:
        """*learnt* is the training data, which answers should not copy; *judged* held-out prompts are answered."""
        self.stage, self.policy, self.judged = stage, policy, judged
        self.repeats = int(stage.steps_per_batch)
        self.judges = bool(stage.reward_scores)
        self.watch = RolloutWatch([c.reference() or c.text or "" for c in learnt], rewarded=self.judges)
        self._kept: tuple[int, list[Example]] | None = None

    def gather(self, step: int, chosen: Sequence[Example]) -> Gathered:
        """Return the answers of *step* with their credit: sampled now, or in a step before where they serve several."""
        batch = step // self.repeats
        if self._kept is not None and self._kept[0] == batch:
            return Gathered(self.stage.again(self._kept[1]), {}, [])
        began = time.monotonic()
        experienced = self.stage.experience((_LEARN, batch), chosen, self.policy)
        self._kept = (batch, experienced.examples) if self.repeats > 1 else None
        measured, events = self._look_at(step, experienced.rollouts)
        if batch % self.stage.record_every == 0 and self.stage.record and experienced.rollouts:
            rows = [_row(each) for each in experienced.rollouts[: self.stage.record]]
            events.append({"kind": "samples", "step": step + 1, "rows": rows})
        seconds = {"rollout_seconds": time.monotonic() - began}
        return Gathered(experienced.examples, {**experienced.measured, **measured, **seconds}, events)

    def _look_at(self, step: int, rollouts: Sequence[Rollout]) -> tuple[dict[str, float], list[Event]]:
        """Return what the answers of *step* measure, and the alarms they raise; nothing where there are none."""
        if not rollouts:
            return {}, []
        tokens = [len(each.completion.tokens) for each in rollouts]
        prompts = [each.asked.tokens.tobytes() for each in rollouts]
        watched, alarms = self.watch.look(step + 1, [each.text for each in rollouts], tokens, prompts)
        cut = sum(not each.completion.finished for each in rollouts) / len(rollouts)
        return {**watched, "cut": cut}, [{"kind": "alarm", "step": step + 1, "text": text} for text in alarms]

    def judge(self, held_out: Sequence[Example]) -> dict[str, float]:
        """Return the mean reward of an answer to each of the first prompts; ``loss`` is its negative."""
        rollouts = self.stage.roll_out((_JUDGE,), list(held_out)[: self.judged], self.policy, 1)
        reward = sum(each.reward or 0.0 for each in rollouts) / len(rollouts)
        parts = {
            f"reward_{name}": sum(each.parts[name] for each in rollouts) / len(rollouts) for name in rollouts[0].parts
        }
        return {"loss": -reward, "reward": reward, **parts}

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on: where answers serve several steps, the answers too."""
        state: dict[str, Any] = {"watch": self.watch.state()}
        if self._kept is not None:
            batch, examples = self._kept
            state["batch"], state["examples"] = batch, [_example_state(each) for each in examples]
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a :meth:`state`."""
        self.watch.restore(state["watch"])
        if "batch" in state:
            self._kept = (state["batch"], [_example_of(each) for each in state["examples"]])


def make_rollouts(settled: Settled, packed: Any, accelerator: Any, layout: Any) -> Rollouts:
    """Return the experience of the recipe's stage with *packed*, whose weights are those that training begins with."""
    from tunesmith.engine.start_weights import StartWeights
    from tunesmith.generation.policy import Policy
    from tunesmith.generation.rollouts import check_model

    plan, recipe, prepared = settled.plan, settled.plan.recipe, settled.prepared
    stage: Any = recipe.stage
    check_model(packed.base)
    _check_constraint(stage.sampling, prepared.template.tokenizer)
    start = StartWeights(packed.model) if stage.asks_start else None
    policy = Policy(
        packed,
        prepared.template,
        accelerator,
        layout=layout,
        tokens_per_pass=plan.tokens_per_pass,
        seed=recipe.seed,
        start=start,
    )
    policy.remote = make_remote_sampler(settled, packed.model)
    learnt = [conversation_of(example) for example in prepared.train.examples]
    load_judge = partial(RewardJudge, device=str(accelerator.device.type))
    prepare_scores(stage.reward_scores, lambda: learnt, load_judge)
    return Rollouts(stage, policy, learnt, recipe.evaluation.examples)


def _check_constraint(sampling: Sampling, tokenizer: Any) -> None:
    """Raise :class:`RecipeError` where answers cannot be held to the constraint of *sampling*."""
    from tunesmith.generation.vocabulary import Vocabulary

    if sampling.constraint is None:
        return
    found = sampling.constraint.check_vocabulary(Vocabulary.of(tokenizer), sampling.max_new_tokens)
    if problems := [replace(each, path=f"stage.sampling.constraint.{each.path}".rstrip(".")) for each in found]:
        raise RecipeError(problems)


def _row(rollout: Rollout) -> dict[str, Any]:
    """Return an answer as it is kept."""
    conversation = rollout.asked.conversation
    asked = [{"role": message.role, "content": message.content} for message in conversation.prompt()]
    earned: dict[str, Any] = {}
    if rollout.reward is not None:
        why = {name: why for name, why in rollout.why.items() if why}
        earned = {"reward": rollout.reward, "parts": rollout.parts, "why": why}
    return {
        "origin": str(conversation.origin),
        "prompt": asked or [{"role": "text", "content": conversation.text or ""}],
        "answer": rollout.text,
        **earned,
        "tokens": len(rollout.completion.tokens),
        "finished": rollout.completion.finished,
    }


def _example_state(example: Example) -> dict[str, Any]:
    import torch

    sequences = [(torch.from_numpy(s.tokens), torch.from_numpy(s.weight)) for s in example.sequences]
    origin = [example.origin.file, example.origin.line]
    return {"sequences": sequences, "origin": origin, "credit": example.values[0].state()}


def _example_of(state: dict[str, Any]) -> Example:
    sequences = tuple(TokenSequence(tokens.numpy(), weight.numpy()) for tokens, weight in state["sequences"])
    return Example(sequences, Origin(*state["origin"]), (Credit.from_state(state["credit"]),))
