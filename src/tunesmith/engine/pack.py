"""The prefix forest: sequences of several examples merged where they begin alike, laid out depth first.

What one forward pass sees is a :class:`Pack`.  Token ``q`` sees token ``k`` iff ``k <= q < reach[k]``.  One integer a
token thus describes plain packing (no sequence sees another) and prefix sharing (an instruction, a dialogue's history,
a prompt common to several answers is computed once).  Since a shared token's hidden state is the same for every
sequence that contains it, losses and gradients equal those of one sequence a row, up to rounding.

Numpy only: packs are built beside the training step, and tested without torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.engine.example import Example
from tunesmith.templates.tokens import TokenSequence

Layout = Literal["prefix", "packed", "padded", "single"]
ROWS = ("padded", "single")
"""Layouts of one sequence a row; the others put several into one."""

# A shared prefix shorter than this is computed again: a branch costs attention more than a few tokens cost the rest.
SHORTEST_SHARED = 8


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Sequences laid out for one forward pass; arrays are numpy's, or torch's after :meth:`to`.

    ``tokens``, ``depth``, ``reach``: ``[n]``; ``source``, ``target``, ``weight``, ``sequence``: ``[m]``.
    """

    tokens: Any
    """Token ids."""
    depth: Any
    """Position id of each token: how many tokens precede it in its sequence."""
    reach: Any
    """One past the last index that may attend to this token."""
    source: Any
    """Index of the position whose hidden state predicts …"""
    target: Any
    """… this token id …"""
    weight: Any
    """… with this loss weight …"""
    sequence: Any
    """… for this sequence, numbered within the pack in the order of its examples."""
    width: int = 0
    """Tokens a row when the layout is one padded sequence a row; 0 when all tokens are one row."""
    examples: tuple[Example, ...] = ()

    def to(self, device: Any) -> "Pack":
        """Return the pack as torch tensors on *device*."""
        import torch

        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors: dict[str, Any] = {
            name: torch.from_numpy(value).to(device, non_blocking=True) if isinstance(value, np.ndarray) else value
            for name, value in arrays.items()
        }
        return Pack(**tensors)


def build_packs(examples: Sequence[Example], layout: Layout, budget: int) -> list[Pack]:
    """Return *examples* as packs of about *budget* tokens; an example is never split, so a long one may exceed it."""
    if layout == "single":
        return [_padded([example]) for example in examples]
    if layout == "padded":
        return [_padded(group) for group in _fill_rows(examples, budget)]
    shared = SHORTEST_SHARED if layout == "prefix" else None
    return [_forest(group, shared) for group in _fill_forest(examples, shared, budget)]


def split_examples(examples: Sequence[Example], parts: int) -> list[list[Example]]:
    """Share *examples* among *parts* processes: neighbours in sorted order stay together, tokens are balanced."""
    if parts == 1:
        return [list(examples)]
    ordered = sorted(examples, key=_key)
    out: list[list[Example]] = [[] for _ in range(parts)]
    total, done = sum(e.tokens for e in ordered), 0
    for example in ordered:
        out[min(parts - 1, done * parts // max(1, total))].append(example)
        done += example.tokens
    return out


def _key(example: Example) -> tuple[bytes, ...]:
    # big-endian bytes sort as the tokens do, many times faster than lists of integers
    return tuple(s.tokens.astype(">u4").tobytes() for s in example.sequences)


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return the length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return n if not n or not differs[first] else first


def _fill_rows(examples: Sequence[Example], budget: int) -> Iterable[list[Example]]:
    """Group examples of similar length, so that rows x width stays within *budget*."""
    group: list[Example] = []
    rows = width = 0
    for example in sorted(examples, key=lambda e: max(map(len, e.sequences))):
        longest, more = max(map(len, example.sequences)), len(example.sequences)
        if group and (rows + more) * max(width, longest) > budget:
            yield group
            group, rows, width = [], 0, 0
        group.append(example)
        rows, width = rows + more, max(width, longest)
    if group:
        yield group


def _fill_forest(examples: Sequence[Example], shortest: int | None, budget: int) -> Iterable[list[Example]]:
    """Group examples so that their forest holds about *budget* tokens; those that begin alike go together."""
    ordered = sorted(examples, key=_key) if shortest is not None else sorted(examples, key=lambda e: e.tokens)
    group: list[Example] = []
    size, before = 0, np.empty(0, np.int32)
    for example in ordered:
        new = 0
        for sequence in example.sequences:
            common = _common(before, sequence.tokens) if shortest is not None else 0
            new += len(sequence) - (common if shortest is not None and common >= shortest else 0)
            before = sequence.tokens
        if group and size + new > budget:
            yield group
            group, size, new = [], 0, example.tokens
        group.append(example)
        size += new
    if group:
        yield group


def _padded(examples: list[Example]) -> Pack:
    """Return one sequence a row, filled up with its last token, which nothing attends to.

    Not with token 0: the row of a padding token may be zero, and layers that divide by what it becomes (Gemma 3n) give
    gradients that are no numbers.
    """
    sequences = [s for e in examples for s in e.sequences]
    width = max(map(len, sequences))
    tokens = np.zeros((len(sequences), width), np.int64)
    depth = np.tile(np.arange(width), (len(sequences), 1))
    reach = np.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)], tokens[row, len(sequence) :] = sequence.tokens, sequence.tokens[-1]
        reach[row, : len(sequence)] = row * width + len(sequence)
    predictions = [_predictions(s, row * width + np.arange(len(s)), row) for row, s in enumerate(sequences)]
    return _pack(tokens.ravel(), depth.ravel(), reach.ravel(), predictions, width, examples)


def _forest(examples: list[Example], shortest: int | None) -> Pack:
    """Merge the sequences into a forest of prefixes; ``None`` merges nothing."""
    sequences = [s for e in examples for s in e.sequences]
    order: Iterable[int] = range(len(sequences))
    if shortest is not None:
        order = sorted(order, key=lambda i: sequences[i].tokens.astype(">u4").tobytes())
    tokens: list[NDArray[Any]] = []
    depth: list[NDArray[Any]] = []
    reach = np.empty(sum(map(len, sequences)), np.int64)
    predictions = []
    path = np.empty(0, np.int64)  # the packed index of each token of the sequence before
    before = np.empty(0, np.int32)
    size = 0
    for index in order:
        sequence = sequences[index]
        common = _common(before, sequence.tokens) if shortest is not None else 0
        common = 0 if shortest is None or common < shortest else _branch(common, path, shortest)
        reach[path[common:]] = size
        new = sequence.tokens[common:]
        path = np.concatenate([path[:common], np.arange(size, size + len(new))])
        tokens.append(new)
        depth.append(np.arange(common, len(sequence)))
        predictions.append(_predictions(sequence, path, index))
        size += len(new)
        before = sequence.tokens
    reach[path] = size
    return _pack(np.concatenate(tokens), np.concatenate(depth), reach[:size], predictions, 0, examples)


def _branch(common: int, path: NDArray[np.int64], shortest: int) -> int:
    """Return where to leave *path*, of which *common* tokens are shared: not just after another branching point."""
    jumps = np.flatnonzero(np.diff(path[:common]) != 1)
    last = int(jumps[-1]) + 1 if len(jumps) else 0
    return common if common - last >= shortest else last


def _predictions(sequence: TokenSequence, path: NDArray[np.int64], index: int) -> tuple[NDArray[Any], ...]:
    at = np.flatnonzero(sequence.weight)
    return path[at - 1], sequence.tokens[at], sequence.weight[at], np.full(len(at), index)


def _pack(
    tokens: NDArray[Any],
    depth: NDArray[Any],
    reach: NDArray[Any],
    predictions: list[tuple[NDArray[Any], ...]],
    width: int,
    examples: list[Example],
) -> Pack:
    source, target, weight, sequence = (np.concatenate(columns) for columns in zip(*predictions, strict=True))
    return Pack(
        tokens=tokens.astype(np.int64),
        depth=depth.astype(np.int64),
        reach=reach.astype(np.int64),
        source=source.astype(np.int64),
        target=target.astype(np.int64),
        weight=weight.astype(np.float32),
        sequence=sequence.astype(np.int64),
        width=width,
        examples=tuple(examples),
    )
