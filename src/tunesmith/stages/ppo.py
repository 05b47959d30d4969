"""PPO: a value head learns what answers will earn, and tokens that did better get likelier (arXiv:1707.06347)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from tunesmith.stages._advantages import generalized_advantages, whitened
from tunesmith.stages._credit import PackCredit, clipped, clipped_share
from tunesmith.stages._rewarded import AbstractClipped, Batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tunesmith.engine.model import PackModel
    from tunesmith.generation.policy import Policy
    from tunesmith.stages._asked import Rollout


class PPO(AbstractClipped):
    """Proximal policy optimisation with a value head on the model itself, saved beside it as its own file."""

    num_generations: Annotated[int, Field(ge=1)] = 1
    """Answers to each prompt; one is enough, since the value head says what was to be expected."""

    num_iterations: Annotated[int, Field(ge=1)] = 2
    """Steps in a row that learn from the same answers; in the last they are that many steps old, less one."""

    beta: Annotated[float, Field(ge=0)] = 0.05
    """What each token's divergence from the weights of the start costs; 0 does not compare with them."""

    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What a reward one token later is worth."""

    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """How far rewards are looked ahead for: 1 to the end, 0 to the next value."""

    vf_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value head's loss."""

    cliprange_value: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from what it was when the answer was sampled, before it is penalised."""

    def begin(self, model: PackModel) -> None:
        from tunesmith.engine.value_head import add_value_head

        super().begin(model)
        add_value_head(model)

    def save(self, model: nn.Module, folder: Path) -> None:
        from tunesmith.engine.value_head import save_value_head

        save_value_head(model, folder)

    @property
    def asks_old(self) -> bool:
        """No: they come with the values."""
        return False

    def batch(self, rollouts: Sequence[Rollout], policy: Policy) -> Batch:
        found = policy.ask([rollout.sequence() for rollout in rollouts])
        batch = super().batch(rollouts, policy)
        return replace(batch, old=[each[:, 0] for each in found], value=[each[:, 1] for each in found])

    def advantages(self, batch: Batch) -> list[NDArray[np.float32]]:
        scaled = whitened(np.concatenate(self._estimates(batch)))
        return [part.astype(np.float32) for part in np.split(scaled, np.cumsum(batch.lengths)[:-1])]

    def value_targets(self, batch: Batch) -> list[NDArray[np.float32]]:
        assert batch.value is not None
        pairs = zip(self._estimates(batch), batch.value, strict=True)
        return [(estimate + value).astype(np.float32) for estimate, value in pairs]

    def _estimates(self, batch: Batch) -> list[NDArray[np.float64]]:
        """Return the advantage of each token before it is scaled."""
        assert batch.value is not None
        found = []
        for at, (earned, values) in enumerate(zip(batch.reward.ravel().tolist(), batch.value, strict=True)):
            rewards = np.zeros(len(values))
            if batch.start is not None:
                assert batch.old is not None
                rewards -= self.beta * (batch.old[at] - batch.start[at])
            rewards[-1] += earned
            found.append(generalized_advantages(rewards, values, self.gamma, self.lam))
        return found

    def step_size(self, batch: Batch) -> float:
        counted = zip(batch.lengths, batch.counted, strict=True)
        return float(max(1, sum(length for length, counts in counted if counts)))

    def policy_loss(self, log_p: Tensor, credit: PackCredit) -> tuple[Tensor, dict[str, Any]]:
        assert credit.old is not None
        ratio = (log_p - credit.old).exp()
        loss = clipped(ratio, credit.advantage, self.epsilon, self.high)
        share = clipped_share(ratio, credit.advantage, self.epsilon, self.high)
        return (loss * credit.counted).sum(), {"clipped": credit.mean(share)}

    def value_loss(self, values: Tensor, credit: PackCredit) -> tuple[Tensor, Tensor]:
        assert credit.value is not None
        assert credit.target is not None
        near = credit.value + (values - credit.value).clamp(-self.cliprange_value, self.cliprange_value)
        worse = ((values - credit.target) ** 2).maximum((near - credit.target) ** 2) / 2
        return self.vf_coef * (worse * credit.counted).sum(), credit.mean(worse)
