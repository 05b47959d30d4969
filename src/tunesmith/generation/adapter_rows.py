"""What adapters add to the output of a layer, for a pass whose rows have different ones.

Three ways, which differ in what is moved and what is multiplied in vain, and in nothing else:

- stacked: all rows times all ranks, then each row keeps what is its own.  Nothing is moved, and little is called.
- grouped: rows with the same adapters are brought together, and one batched product takes a group each.
- picked: every row gets a copy of its own factors.

The first is for what is small; of the others, the one that moves less: rows that are short, or factors that are thin.

Legend: K rows of a pass, W tokens a row, R ranks, I inputs and O outputs of a layer, G groups, M rows of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Kind = tuple[tuple[range, float], ...]
    """The ranks of each adapter that a row has, and how much of it."""
    Spelled = tuple[list[int], list[float]]
    """Ranks one by one, and how much of each."""

# so many products in vain are done faster than rows are moved; measured on a CPU, supposed elsewhere
_IN_VAIN_CPU, _IN_VAIN = 1 << 21, 1 << 28


class Layer:
    """The factors of all adapters of one layer: ``[R, I]``, and ``[R, O]`` with their scales."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        """Begin with these."""
        self.change(down, up)

    def change(self, down: Tensor, up: Tensor) -> None:
        """Have other factors from now on."""
        self.down, self.up = down, up
        self.width = down.shape[1] + up.shape[1]
        self._part: tuple[Tensor, Tensor] | None = None
        self._part_ranks: slice | None = None
        self._groups: tuple[Tensor, Tensor] | None = None
        self._groups_ranks: tuple[int, ...] = ()

    def part(self, ranks: slice) -> tuple[Tensor, Tensor]:
        """Return those *ranks*, ``[I, R]`` and ``[R, O]``."""
        if self._part is None or self._part_ranks != ranks:
            self._part, self._part_ranks = (self.down[ranks].T, self.up[ranks]), ranks
        return self._part

    def groups(self, ranks: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
        """Return the *ranks* of *count* groups, ``[G, I, R]`` and ``[G, R, O]``: copies only where they lie apart."""
        if self._groups is None or self._groups_ranks != ranks:
            if ranks == tuple(range(ranks[0], ranks[-1] + 1)):
                down, up = self.down[ranks[0] : ranks[-1] + 1], self.up[ranks[0] : ranks[-1] + 1]
            else:
                index = torch.tensor(ranks, device=self.down.device)
                down, up = self.down.index_select(0, index), self.up.index_select(0, index)
            self._groups = down.view(count, -1, down.shape[1]).transpose(1, 2), up.view(count, -1, up.shape[1])
            self._groups_ranks = ranks
        return self._groups


class Rows(Protocol):
    """The adapters of the rows of a pass."""

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        """Add what the adapters make of *inputs* to *output*, which is contiguous; both are of the factors' type."""


@dataclass
class _Stacked:
    ranks: slice
    """From the first to the last adapter used: a range of rows of a matrix needs no copy."""
    scales: Tensor
    """``[K, R]``: how much each row wants of each rank; one row holds for all."""

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        down_IR, up_RO = layer.part(self.ranks)
        found = torch.mm(inputs.reshape(-1, inputs.shape[-1]), down_IR)
        rows = len(self.scales)
        if rows in (1, len(found)):
            found.mul_(self.scales)
        else:
            found.view(rows, -1, found.shape[1]).mul_(self.scales[:, None])
        output.view(-1, output.shape[-1]).addmm_(found, up_RO)


@dataclass
class _Grouped:
    """Rows without adapters are in no group."""

    ranks: tuple[int, ...]
    """Those of all groups, one after the other."""
    row_of: Tensor
    """``[G * M]``: the row at each place of a group; any row where a group has fewer."""
    scales: Tensor
    """``[G, M, R]``: how much of each rank; 0 where a group has fewer rows or ranks."""
    rows: int

    def __post_init__(self) -> None:
        """See whether every row wants the whole of its adapter, as most do: then nothing is scaled."""
        self._whole = bool((self.scales == 1).all())

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        groups, places, ranks = self.scales.shape
        down_GIR, up_GRO = layer.groups(self.ranks, groups)
        moved = inputs.reshape(self.rows, -1).index_select(0, self.row_of).view(groups, -1, inputs.shape[-1])
        found = torch.bmm(moved, down_GIR)
        if self._whole:
            pass
        elif found.shape[1] == places:
            found.mul_(self.scales)
        else:
            found.view(groups, places, -1, ranks).mul_(self.scales[:, :, None])
        added = torch.bmm(found, up_GRO)
        output.view(self.rows, -1).index_add_(0, self.row_of, added.view(len(self.row_of), -1))


@dataclass
class _Picked:
    ranks: Tensor
    """``[K, R]``."""
    scales: Tensor
    """``[K, R]``: how much of each; 0 where a row has fewer."""

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        rows, ranks = self.ranks.shape
        index = self.ranks.view(-1)  # of one dimension: to index with two takes three times as long on a CPU
        down_KRI = layer.down.index_select(0, index).view(rows, ranks, -1)
        up_KRO = layer.up.index_select(0, index).view(rows, ranks, -1)
        found = torch.bmm(inputs.reshape(rows, -1, inputs.shape[-1]), down_KRI.transpose(1, 2))
        output.view(rows, -1, output.shape[-1]).baddbmm_(found.mul_(self.scales[:, None]), up_KRO)


@dataclass
class _Mixed:
    stacked: _Stacked
    grouped: _Grouped | None
    """None where groups differ so much in size that filling them up would cost as much."""
    picked: _Picked
    spared: float
    """Ranks that a token is multiplied with in vain when stacked."""
    bearable: int

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        rows, ranks = self.picked.ranks.shape
        tokens = inputs.numel() // inputs.shape[-1]
        way: Rows = self.stacked
        if tokens * self.spared * layer.width > self.bearable:
            if tokens >= rows * ranks:
                way = self.picked
            elif self.grouped is not None:
                way = self.grouped
        way.add(layer, inputs, output)


def arrange(rows: Sequence[Kind], like: Tensor) -> Rows:
    """Return the way for *rows*, of which some have adapters; one row holds for all.  Factors are such as *like*."""
    stacked = _stack(rows, like)
    kinds = sorted({row for row in rows if row}, key=lambda kind: [(ranks.start, share) for ranks, share in kind])
    if len(kinds) < 2:
        return stacked
    most = max(sum(len(ranks) for ranks, _ in kind) for kind in kinds)
    spelled = {kind: _spell(kind, most) for kind in kinds}
    spelled[()] = [0] * most, [0.0] * most
    picked = _Picked(
        torch.tensor([spelled[row][0] for row in rows], device=like.device),
        torch.tensor([spelled[row][1] for row in rows]).to(like),
    )
    members = {kind: [place for place, row in enumerate(rows) if row == kind] for kind in kinds}
    places = len(kinds) * max(map(len, members.values()))
    stacked_ranks = stacked.scales.shape[1]
    grouped = None if 2 * places * most > len(rows) * stacked_ranks else _group(members, spelled, len(rows), like)
    bearable = _IN_VAIN_CPU if like.device.type == "cpu" else _IN_VAIN
    return _Mixed(stacked, grouped, picked, stacked_ranks - most, bearable)


def _group(members: Mapping[Kind, Sequence[int]], spelled: Mapping[Kind, Spelled], rows: int, like: Tensor) -> _Grouped:
    """Fill all groups up to the size of the largest."""
    size = max(map(len, members.values()))
    ranks, row_of, scales = [], [], []
    for kind, group in members.items():
        own, shares = spelled[kind]
        spare = size - len(group)
        ranks += own
        row_of += [*group, *[group[0]] * spare]
        scales.append([shares] * len(group) + [[0.0] * len(own)] * spare)
    return _Grouped(tuple(ranks), torch.tensor(row_of, device=like.device), torch.tensor(scales).to(like), rows)


def _stack(rows: Sequence[Kind], like: Tensor) -> _Stacked:
    used = [ranks for row in rows for ranks, _ in row]
    first, last = min(ranks.start for ranks in used), max(ranks.stop for ranks in used)
    scales_KR = torch.zeros(len(rows), last - first)
    for place, row in enumerate(rows):
        for ranks, share in row:
            scales_KR[place, ranks.start - first : ranks.stop - first] = share
    return _Stacked(slice(first, last), scales_KR.to(like))


def _spell(kind: Kind, most: int) -> Spelled:
    """Return *most* ranks, and how much of each."""
    ranks = [rank for each, _ in kind for rank in each]
    shares = [share for each, share in kind for _ in each]
    spare = most - len(ranks)
    return ranks + ranks[:1] * spare, shares + [0.0] * spare
