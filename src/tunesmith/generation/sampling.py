"""How the answers are sampled that an online stage learns from, and what comes back; no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializeAsAny

from tunesmith.core.errors import Problem
from tunesmith.core.registry import Block
from tunesmith.generation.constraints import CONSTRAINTS, Constraint
from tunesmith.generation.sampling_server import SamplingServer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Sampling(Block):
    """How the answers are sampled that an online stage learns from."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer, in tokens; together with its prompt it must fit ``data.max_tokens``."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits, of sampling as of a rewarded stage's loss; 1.0 samples what the model believes."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample only from so many of the likeliest tokens; 0 from all, as the loss assumes."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample only from the likeliest tokens that together reach this probability; 1 from all, as the loss assumes."""

    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample only from tokens at least this share as likely as the likeliest one; 0 from all, as the loss assumes."""

    constraint: Annotated[SerializeAsAny[Constraint] | None, CONSTRAINTS] = None
    """A form that answers are held to, such as ``{type: regex, pattern: …}``; the loss does not know of it."""

    batch_size: Annotated[int, Field(ge=1)] = 256
    """Answers written at once; changes speed and memory only."""

    server: SamplingServer | None = None
    """A server that writes them with the adapter as it is, such as vLLM's; left out, the model that trains does."""

    @property
    def cuts(self) -> bool:
        """Whether some tokens may not be sampled at all."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield what does not go together."""
        if self.constraint is not None:
            yield from self.constraint.check(recipe)
        if self.server is not None:
            yield from self.server.check(recipe, self.constraint is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled answer."""

    tokens: NDArray[np.int32]
    """Its tokens, with the one that ended it."""
    log_probabilities: NDArray[np.float32]
    """Of each token under the model at the sampling temperature, nothing cut off."""
    finished: bool
    """Whether it ended itself; else it was cut at the longest length."""
