"""What one training example is: token sequences that belong together."""

from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.conversation import Origin
from tunesmith.templates.tokens import TokenSequence


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """Sequences that must be in one pass together: one for an answer, two for a preference, one a rollout."""

    sequences: tuple[TokenSequence, ...]
    origin: Origin = field(default=Origin("memory", 0))
    values: tuple[Any, ...] = ()
    """What a stage keeps beside them, such as reference log-probabilities."""

    @property
    def tokens(self) -> int:
        """Tokens over all sequences, nothing shared."""
        return sum(map(len, self.sequences))
