"""Many examples in a few flat arrays; each becomes an object when it is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tunesmith.data.conversation import Origin
from tunesmith.engine.example import Example
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ExampleTable(Sequence[Example]):
    """Examples one after another, their sequences one after another; arrays may be read-only maps of a file."""

    tokens: NDArray[np.int32]
    """``[t]``: the token ids of all sequences."""
    weight: NDArray[np.float32]
    """``[t]``: the weight of predicting each."""
    sequence_start: NDArray[np.int64]
    """``[s + 1]``: where each sequence begins in ``tokens``, and where the last one ends."""
    example_start: NDArray[np.int64]
    """``[e + 1]``: which sequence each example begins with, and how many there are."""
    file: NDArray[np.int32]
    """``[e]``: index in ``files`` of the file that each example was read from."""
    line: NDArray[np.int64]
    """``[e]``: its line there."""
    files: tuple[str, ...] = ()
    values: tuple[tuple[Any, ...], ...] = ()
    """What the stage keeps beside each example; empty where it keeps nothing beside any."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> ExampleTable:
        """Return *examples* as a table."""
        sequences = [sequence for example in examples for sequence in example.sequences]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(e.origin.file for e in examples))}
        return cls(
            _joined([s.tokens for s in sequences], np.int32),
            _joined([s.weight for s in sequences], np.float32),
            _starts([len(sequence) for sequence in sequences]),
            _starts([len(example.sequences) for example in examples]),
            np.array([numbers[e.origin.file] for e in examples], np.int32),
            np.array([e.origin.line for e in examples], np.int64),
            tuple(numbers),
            tuple(e.values for e in examples) if any(e.values for e in examples) else (),
        )

    @classmethod
    def join(cls, tables: Sequence[ExampleTable]) -> ExampleTable:
        """Return the examples of all *tables*, in order."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(chain(*(t.files for t in tables))))}
        renumbered = [np.array([numbers[name] for name in t.files], np.int32)[t.file] for t in tables]
        values = chain(*(t.values or ((),) * len(t) for t in tables)) if any(t.values for t in tables) else ()
        return cls(
            _joined([t.tokens for t in tables], np.int32),
            _joined([t.weight for t in tables], np.float32),
            _starts(_joined([np.diff(t.sequence_start) for t in tables], np.int64)),
            _starts(_joined([np.diff(t.example_start) for t in tables], np.int64)),
            _joined(renumbered, np.int32),
            _joined([t.line for t in tables], np.int64),
            tuple(numbers),
            tuple(values),
        )

    def __len__(self) -> int:
        return len(self.line)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        at = range(len(self))[index]
        first, end = self.example_start[at], self.example_start[at + 1]
        bounds = self.sequence_start[first : end + 1].tolist()
        return Example(
            tuple(TokenSequence(self.tokens[begin:stop], self.weight[begin:stop]) for begin, stop in pairwise(bounds)),
            Origin(self.files[self.file[at]], int(self.line[at])),
            self.values[at] if self.values else (),
        )

    @property
    def trained_tokens(self) -> int:
        """Tokens whose prediction counts."""
        return int(np.count_nonzero(self.weight))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(np.diff(self.sequence_start).max(initial=0))

    @property
    def highest_token(self) -> int:
        """The largest token id; -1 where there is none."""
        return int(self.tokens.max(initial=-1))


def _joined(arrays: list[NDArray[Any]], kind: type) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, kind)


def _starts(lengths: Any) -> NDArray[np.int64]:
    """Return where each of the things of these *lengths* begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
