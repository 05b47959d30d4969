"""How much better than expected answers did, from what the answers to the same prompt earned.

Legend: P prompts, G answers to each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SMALL = 1e-4  # added to deviations, as TRL does

Scale = Literal["group", "batch", "none"]


def group_advantages(reward: NDArray[np.float64], scale: Scale) -> NDArray[np.float64]:
    """Return ``[P, G]``: rewards less their group's mean, over the deviation of the group or of the batch (GRPO)."""
    apart = reward - reward.mean(1, keepdims=True)
    if scale == "none":
        return np.asarray(apart)
    deviation = _deviation(reward, 1) if scale == "group" else _deviation(reward, None)
    return np.asarray(apart / (deviation + _SMALL))


def separate_advantages(parts: Sequence[tuple[NDArray[np.float64], float]]) -> NDArray[np.float64]:
    """Return ``[P, G]``: each score scaled within its group and weighed, then their sum over the batch (GDPO).

    arXiv:2601.05242.
    """
    total = sum(weight * group_advantages(values, "group") for values, weight in parts)
    return whitened(np.asarray(total))


def leave_one_out(reward: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``[P, G]``: each reward less the mean of the others of its group (RLOO, arXiv:2402.14740)."""
    others = reward.shape[1] - 1
    return np.asarray(reward - (reward.sum(1, keepdims=True) - reward) / others)


def whitened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return *values* with mean 0 and deviation 1."""
    return np.asarray((values - values.mean()) / (_deviation(values, None) + _SMALL))


def rewards_to_go(reward: float, penalties: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return for each token what is still to come: the answer's reward less the penalties from here on."""
    return np.asarray(reward - np.cumsum(penalties[::-1].astype(np.float64))[::-1])


def generalized_advantages(
    rewards: NDArray[np.floating[Any]], values: NDArray[np.floating[Any]], gamma: float, lam: float
) -> NDArray[np.float64]:
    """Return the generalized advantage estimate of each token (GAE, arXiv:1506.02438); nothing follows the last one."""
    found = np.zeros(len(rewards))
    following = advantage = 0.0
    for at in range(len(rewards) - 1, -1, -1):
        surprise = float(rewards[at]) + gamma * following - float(values[at])
        advantage = surprise + gamma * lam * advantage
        found[at], following = advantage, float(values[at])
    return found


def _deviation(values: NDArray[np.float64], axis: int | None) -> Any:
    """Return the sample deviation; 0 of a single value."""
    count = values.size if axis is None else values.shape[axis]
    return values.std(axis, ddof=1, keepdims=axis is not None) if count > 1 else np.zeros_like(values)
