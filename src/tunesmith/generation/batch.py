"""Replies that are written together: they join when there is room, and leave when they are finished.

Two ways, chosen by what the model's cache can do.  :class:`SlotBatch` batches continuously: each step reads some
prompts and writes one token of every reply.  :class:`WholeBatch` runs ``generate`` of transformers, one batch after the
other: for caches that cannot be joined, and for beam search.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tunesmith.generation.kept import KeptReplies, common_start
from tunesmith.generation.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunesmith.generation.adapter_bank import AdapterBank
    from tunesmith.generation.reply import Reply
    from tunesmith.generation.slots import SlotModel

# a prompt that shares so many tokens with a reply being written takes what that one has in the cache
_SHARED = 8


@dataclass(frozen=True)
class BatchLimits:
    """How much is written and read at once."""

    rows: int = 32
    """Replies written at the same time."""
    read: int = 1024
    """Prompt tokens read in one pass; what is longer is read in parts, between which replies go on."""
    cache: int | None = None
    """Tokens that the cache may have room for, prompts and replies together; None sets no limit."""
    kept: int = 0
    """Tokens of finished replies that are kept for prompts that go on from them; never where the weights change."""


class Batch(Protocol):
    """Replies in the making."""

    steps: int
    """Passes that wrote a token of each reply."""

    def add(self, reply: Reply) -> None:
        """Take *reply* in; it is begun as soon as there is room."""

    def step(self) -> None:
        """Write for as short a time as this batch can."""

    @property
    def replies(self) -> list[Reply]:
        """All that are not finished."""

    @property
    def writing(self) -> int:
        """How many have been begun."""

    def clear(self) -> None:
        """Drop all replies, as after an error."""


@dataclass(eq=False)
class _Row:
    reply: Reply
    filled: int = 0
    """Tokens of prompt and reply that its slot holds."""
    most: int = 0
    """Tokens that it may come to."""

    def __post_init__(self) -> None:
        self.most = len(self.reply.prompt) + self.reply.most

    @property
    def tokens(self) -> tuple[int, ...]:
        """What its slot holds."""
        return (*self.reply.prompt, *self.reply.tokens)[: self.filled]

    @property
    def left(self) -> int:
        """Tokens of the prompt that were not read."""
        return len(self.reply.prompt) - self.filled


@dataclass
class SlotBatch:
    """Continuous batching over slots: the replies being written have the first ones, a prompt being read the next."""

    model: SlotModel
    bank: AdapterBank
    limits: BatchLimits = BatchLimits()
    before_pass: Callable[[], None] = lambda: None
    """Called before each pass: whoever ends replies from outside does it there."""
    steps: int = 0
    reused: int = 0
    """Tokens of prompts that were not read, as others had read them."""
    _writing: list[_Row] = field(default_factory=list)
    _part: _Row | None = None
    """A prompt that was read in part, and has the slot after those being written."""
    _waiting: deque[_Row] = field(default_factory=deque)
    _sampler: Sampler | None = None
    _kept: KeptReplies = field(init=False)

    def __post_init__(self) -> None:
        self._kept = KeptReplies(self.limits.kept)

    def add(self, reply: Reply) -> None:
        """Take *reply* in; it is begun as soon as there is room."""
        self._waiting.append(_Row(reply))

    @property
    def replies(self) -> list[Reply]:
        """All that are not finished."""
        rows = [*self._writing, *([self._part] if self._part else ()), *self._waiting]
        return [row.reply for row in rows if row.reply.finish_reason is None]

    @property
    def writing(self) -> int:
        """How many have been begun."""
        return len(self._writing) + (self._part is not None)

    def clear(self) -> None:
        """Drop all replies, as after an error, and what is kept: perhaps there was no memory."""
        self._writing, self._part, self._sampler = [], None, None
        self._waiting.clear()
        self._kept = KeptReplies(self.limits.kept)
        self.model.forget()

    def step(self) -> None:
        """Read some prompts, if any wait and there is room; then write one token of each reply."""
        self.before_pass()
        self._drop_finished()
        with torch.no_grad():
            if group := self._next_to_read():
                self._read(group)
                self._drop_finished()
            if self._writing:
                self._write()
                self._drop_finished()
        if not self.replies:
            self.model.forget()

    def _write(self) -> None:
        rows = self._writing
        self.bank.use([row.reply.adapter for row in rows])
        logits_NV = self.model.run([row.reply.tokens[-1:] for row in rows], 0, [row.filled for row in rows])
        for row in rows:
            row.filled += 1
        if self._sampler is None:
            self._sampler = Sampler([row.reply for row in rows], logits_NV.shape[1], logits_NV.device)
        _take(self._sampler, logits_NV)
        self.steps += 1

    def _read(self, group: list[_Row]) -> None:
        """Read prompts, or a part of one, and write the first token of those that are read to their end."""
        self.bank.use([row.reply.adapter for row in group])
        parts = [row.reply.prompt[row.filled : row.filled + self.limits.read] for row in group]
        logits_NV = self.model.run(parts, len(self._writing), [row.filled for row in group])
        for row, part in zip(group, parts, strict=True):
            row.filled += len(part)
        self._part = None
        if group[0].left:  # then it is the only one
            self._part = group[0]
            return
        _take(Sampler([row.reply for row in group], logits_NV.shape[1], logits_NV.device), logits_NV)
        self._writing += group
        self._sampler = None

    def _next_to_read(self) -> list[_Row]:
        """Return the prompts to read now, off the waiting ones; they get the slots behind those being written."""
        if self._part is not None:
            return [self._part]
        group: list[_Row] = []
        while self._waiting and self._has_room(self._waiting[0], group):
            row = self._waiting[0]
            self._share(row, len(self._writing) + len(group))
            width = max([row.left, *(each.left for each in group)])
            if group and (width * (len(group) + 1) > self.limits.read or self._better_later(row, group)):
                row.filled = 0
                break
            self.reused += row.filled
            group.append(self._waiting.popleft())
            if row.left > self.limits.read:
                break
        return group

    def _has_room(self, row: _Row, group: Sequence[_Row]) -> bool:
        taken = [*self._writing, *group]
        if len(taken) >= self.limits.rows:
            return False
        longest = max(each.most for each in (*taken, row))
        return not taken or self.limits.cache is None or (len(taken) + 1) * longest <= self.limits.cache

    def _share(self, row: _Row, slot: int) -> None:
        """Copy what is held of *row*'s prompt, for a reply being written or a finished one: all but its last token."""
        prompt, best, source = row.reply.prompt, 0, 0
        for place, other in enumerate(self._writing):
            if other.reply.adapter == row.reply.adapter:
                common = min(common_start(prompt, other.tokens), len(prompt) - 1)
                if common > best:
                    best, source = common, place
        kept, held = self._kept.find(row.reply.adapter, prompt)
        if max(kept, best) < _SHARED:
            return
        if kept > best:
            self.model.put_in(slot, held, kept)
        else:
            self.model.copy(source, slot, best)
        row.filled = max(kept, best)

    def _better_later(self, row: _Row, group: Sequence[_Row]) -> bool:
        """Say whether *row*'s prompt begins as one of *group*, which it can copy from when that has been read."""
        return any(
            each.reply.adapter == row.reply.adapter
            and common_start(each.reply.prompt, row.reply.prompt) >= max(_SHARED, row.filled + 1)
            for each in group
        )

    def _drop_finished(self) -> None:
        self._waiting = deque(row for row in self._waiting if row.reply.finish_reason is None)
        if self._part is not None and self._part.reply.finish_reason is not None:
            self._part = None
        before = len(self._writing)
        for place in range(before - 1, -1, -1):
            row = self._writing[place]
            if row.reply.finish_reason is not None:
                if _SHARED <= row.filled <= self._kept.most:
                    self._kept.add(row.reply.adapter, row.tokens, self.model.take_out(place, row.filled))
                last = self._writing.pop()
                if place < len(self._writing):
                    self.model.copy(len(self._writing), place, last.filled)
                    self._writing[place] = last
        if len(self._writing) < before:
            self._sampler = None
            if self._part is not None:
                self.model.copy(before, len(self._writing), self._part.filled)


@dataclass
class WholeBatch:
    """One batch after the other through ``generate``; prompts of one length share it, so that nothing is filled up."""

    model: Any
    bank: AdapterBank
    limits: BatchLimits = BatchLimits()
    before_pass: Callable[[], None] = lambda: None
    """Called before each pass: whoever ends replies from outside does it there."""
    steps: int = 0
    _writing: list[Reply] = field(default_factory=list)
    _waiting: deque[Reply] = field(default_factory=deque)

    def add(self, reply: Reply) -> None:
        """Take *reply* in; it is begun when those before it are finished."""
        self._waiting.append(reply)

    @property
    def replies(self) -> list[Reply]:
        """All that are not finished."""
        return [reply for reply in (*self._writing, *self._waiting) if reply.finish_reason is None]

    @property
    def writing(self) -> int:
        """How many have been begun."""
        return sum(reply.finish_reason is None for reply in self._writing)

    def clear(self) -> None:
        """Drop all replies, as after an error."""
        self._writing.clear()
        self._waiting.clear()

    def step(self) -> None:
        """Write the next replies to their end."""
        from tunesmith.generation.whole import search, write_whole

        self.before_pass()
        waiting = [reply for reply in self._waiting if reply.finish_reason is None]
        if not waiting:
            self._waiting.clear()
            return
        first = waiting[0]
        alike = [first]
        if first.settings.num_beams == 1:
            alike = [r for r in waiting if len(r.prompt) == len(first.prompt) and r.settings.num_beams == 1]
        self._writing = alike[: self.limits.rows]
        begun = set(map(id, self._writing))
        self._waiting = deque(reply for reply in waiting if id(reply) not in begun)
        try:
            self.bank.use([reply.adapter for reply in self._writing])
            run = search if first.settings.num_beams > 1 else write_whole
            self.steps += run(self.model, self._writing, self.before_pass)
        finally:
            self._writing = []


def check_all(batch: Batch) -> None:
    """End those of *batch*'s replies that were cancelled, or whose deadline has passed."""
    now = time.monotonic()
    for reply in batch.replies:
        reply.check(now)


def _take(sampler: Sampler, logits_NV: torch.Tensor) -> None:
    for reply, choice in zip(sampler.replies, sampler.choose(logits_NV), strict=True):
        if choice is not None:
            reply.take(choice)
