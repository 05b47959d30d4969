"""What a stage keeps beside sampled answers, token by token, and how it finds it again in a pack.

Legend: M predictions of a pack, S its sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tunesmith.engine.pack import Pack


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """What belongs to the answers of one example; arrays are over all their tokens, one answer after another."""

    advantage: NDArray[np.float32]
    """How much better than expected each token did."""
    sampled: NDArray[np.float32]
    """Log-probability with which it was sampled."""
    counted: NDArray[np.float32]
    """1, or 0 for those of answers that do not count."""
    old: NDArray[np.float32] | None = None
    """Log-probability under the weights that sampled it, as training computes it; None where these still train."""
    start: NDArray[np.float32] | None = None
    """Log-probability under the weights that training began with; None where the loss does not ask."""
    value: NDArray[np.float32] | None = None
    """What a value head expected before it …"""
    target: NDArray[np.float32] | None = None
    """… and what it should have; None where there is no such head."""
    size: float = 0.0
    """This example's part of what the step's loss is divided by."""
    each_token: float = 0.0
    """The step's size for each of its tokens: makes sums over tokens means over them."""
    fresh: bool = True
    """Whether the weights that sampled are those that train."""

    def state(self) -> dict[str, Any]:
        """Return all of it as tensors and plain values."""
        import torch

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Credit:
        """Return what :meth:`state` was taken of."""
        plain = (bool, float, type(None))
        values: dict[str, Any] = {name: v if isinstance(v, plain) else v.numpy() for name, v in state.items()}
        return cls(**values)


@dataclass(frozen=True, eq=False)
class PackCredit:
    """The credit of a pack's examples, a number for each prediction, in the pack's order."""

    advantage: Tensor
    sampled: Tensor
    counted: Tensor
    old: Tensor | None
    start: Tensor | None
    value: Tensor | None
    target: Tensor | None
    sequence: Tensor
    sequences: int
    each_token: float
    fresh: bool

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """Return ``[S]``: the sums of *values* over the tokens that count."""
        return values.new_zeros(self.sequences).index_add_(0, self.sequence, values * self.counted)

    def tokens_by_sequence(self) -> Tensor:
        """Return ``[S]``: how many tokens count, at least 1."""
        import torch

        return self.sum_by_sequence(torch.ones_like(self.counted)).clamp_min(1)

    def mean(self, values: Tensor) -> Tensor:
        """Return the sum of *values* that, over a step and divided by its size, is their mean over tokens."""
        return (values.detach() * self.counted).sum() * self.each_token


def pack_credit(pack: Pack) -> PackCredit | None:
    """Return the credit of a pack of sampled answers; None where its examples are prompts of the data."""
    import torch

    credits = [cast("Any", example.values[0]) for example in pack.examples if example.values]
    if not credits or not isinstance(credits[0], Credit):
        return None
    sequence: Any = pack.sequence
    # stable: predictions of a sequence are in the order of its tokens, as the credit is
    order = torch.argsort(sequence, stable=True)

    def place(name: str) -> Any:
        parts = [getattr(credit, name) for credit in credits]
        if parts[0] is None:
            return None
        flat = torch.from_numpy(np.concatenate(parts)).to(sequence.device)
        return torch.empty_like(flat).index_copy_(0, order, flat)

    return PackCredit(
        advantage=place("advantage"),
        sampled=place("sampled"),
        counted=place("counted"),
        old=place("old"),
        start=place("start"),
        value=place("value"),
        target=place("target"),
        sequence=sequence,
        sequences=sum(len(example.sequences) for example in pack.examples),
        each_token=credits[0].each_token,
        fresh=credits[0].fresh,
    )


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, most: float | None = None) -> Tensor:
    """Return PPO's loss of each ratio: no gain beyond ``1 - low`` and ``1 + high``; *most* bounds it from above too.

    The second bound is INTELLECT-2's (arXiv:2505.07291): it holds where the advantage is below 0.
    """
    import torch

    kept = ratio.clamp(1 - low, 1 + high)
    free = ratio if most is None else ratio.clamp(max=most)
    return -torch.min(free * advantage, kept * advantage)


def clipped_share(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Return 1 where clipping takes the gradient away, else 0."""
    return (((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))).float()


def divergence(log_p: Tensor, start: Tensor) -> Tensor:
    """Return the estimate of the KL divergence from the start that is never below 0 (Schulman's k3)."""
    return (start - log_p).exp() - (start - log_p) - 1


def spread(values: Sequence[float], lengths: Sequence[int]) -> list[NDArray[np.float32]]:
    """Return each value as often as its answer has tokens."""
    return [np.full(length, value, np.float32) for value, length in zip(values, lengths, strict=True)]
