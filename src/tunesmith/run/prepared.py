"""What a run reads: examples, what they are counted as, and what was lost on the way to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.example_table import ExampleTable
    from tunesmith.templates.chat import ChatTemplate


@dataclass(frozen=True)
class Split:
    """Training or validation data: the examples, and the counts of what they came from and what was lost."""

    examples: ExampleTable
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything a run reads."""

    template: ChatTemplate
    train: Split
    validation: Split | None
    held_out: Sequence[Conversation]
    """The conversations that ``validation`` was made of; none is ever trained on."""
    files: list[dict[str, Any]]
    """Path, SHA-256 and rows of each file."""
    notices: list[str]
    remade_because: str = ""
    """Why the next run has to make these examples again; empty where it need not, or where that takes no time."""

    def as_data(self) -> dict[str, Any]:
        """Return the counts as JSON-ready data."""
        return {"train": self.train.counts, "validation": self.validation and self.validation.counts}
