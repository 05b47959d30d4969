"""How the answers are sampled that an online stage learns from, and what comes back; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, SerializeAsAny

from tunesmith.core.registry import Block
from tunesmith.generation.constraints import CONSTRAINTS, Constraint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Sampling(Block):
    """How the answers are sampled that an online stage learns from."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer, in tokens; together with its prompt it must fit ``data.max_tokens``."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits, of sampling as of the loss; 1.0 samples what the model believes."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled answer."""

    tokens: NDArray[np.int32]
    """Its tokens, with the one that ended it."""
    log_probabilities: NDArray[np.float32]
    """Of each token under the model at the sampling temperature, nothing cut off."""
    finished: bool
    """Whether it ended itself; else it was cut at the longest length."""
