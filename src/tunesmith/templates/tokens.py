"""What a template makes of a conversation: token ids, and how much predicting each counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """Token ids ``[n]`` and, beside each, the weight ``[n]`` of predicting it; the first one's is always 0."""

    tokens: NDArray[np.int32]
    weight: NDArray[np.float32]

    def __post_init__(self) -> None:
        assert self.tokens.shape == self.weight.shape
        assert len(self.tokens) > 0
        assert self.weight[0] == 0, "nothing predicts the first token"

    @classmethod
    def of(cls, tokens: Sequence[int], weight: Sequence[float]) -> "TokenSequence":
        """Return the sequence of these lists; nothing predicts the first token, whatever its weight."""
        weights = np.asarray(weight, dtype=np.float32)
        weights[:1] = 0
        return cls(np.asarray(tokens, dtype=np.int32), weights)

    @classmethod
    def trained_from(cls, tokens: Sequence[int], start: int) -> "TokenSequence":
        """Return the sequence whose tokens from *start* on are trained with weight 1."""
        return cls.of(tokens, [0.0] * start + [1.0] * (len(tokens) - start))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def trained(self) -> int:
        """Number of tokens whose prediction counts."""
        return int(np.count_nonzero(self.weight))

    @property
    def weight_total(self) -> float:
        """Sum of the weights."""
        return float(self.weight.sum(dtype=np.float64))

    def cut(self, limit: int) -> "TokenSequence":
        """Return the first *limit* tokens."""
        return self if len(self) <= limit else TokenSequence(self.tokens[:limit], self.weight[:limit])
