"""The contract of a cleaning step, and the account it gives of what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tunesmith.core.registry import Spec
from tunesmith.data.poems import Poem

_SHOWN, _WIDTH = 5, 60


def _first_difference(before: str, after: str) -> int:
    """Return where to begin showing two texts so that the place where they part is seen."""
    place = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    return max(0, place - _WIDTH // 3)


@dataclass(frozen=True, slots=True)
class Example:
    """One thing that a step did."""

    where: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """A poem that a step left out, and why."""

    poem: Poem
    reason: str


@dataclass
class Log:
    """What one step did: how many poems for each kind of change, the first examples of each, and what it dropped."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)

    def note(self, what: str, poem: Poem, before: str, after: str = "") -> None:
        """Count *what* was done to *poem*."""
        self.counts[what] += 1
        shown = self.examples.setdefault(what, [])
        if len(shown) < _SHOWN:
            before, after = before.replace("\n", ""), after.replace("\n", "")
            start = _first_difference(before, after)
            shown.append(Example(poem.where, before[start : start + _WIDTH], after[start : start + _WIDTH]))

    def drop(self, reason: str, poem: Poem, *, because_of: str = "") -> None:
        """Count *poem* as dropped and keep it, so that nothing is lost unseen; *because_of* is another poem's place."""
        self.note(f"dropped: {reason}", poem, poem.text, because_of)
        self.dropped.append(Dropped(poem, f"{reason}: {because_of}" if because_of else reason))


class Cleaner(Spec):
    """One step of cleaning; its fields are its settings."""

    def clean(self, poems: Iterable[Poem], log: Log) -> Iterator[Poem]:
        """Yield the poems that stay, changed or not; tell *log* what was changed and what was dropped."""
        raise NotImplementedError


class AbstractEach(Cleaner):
    """A step that looks at one poem at a time."""

    def clean(self, poems: Iterable[Poem], log: Log) -> Iterator[Poem]:
        for poem in poems:
            cleaned = self.clean_one(poem, log)
            if cleaned is not None:
                yield cleaned

    def clean_one(self, poem: Poem, log: Log) -> Poem | None:
        """Return the poem as it should be, or ``None`` where it was dropped."""
        raise NotImplementedError
