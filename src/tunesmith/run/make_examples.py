"""Make conversations into examples, cut to length and counted; in several processes where that is faster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from tunesmith.core.errors import DataError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.settings import prepare_worker, process_settings
from tunesmith.engine.example_table import ExampleTable
from tunesmith.stages import Example
from tunesmith.templates.chat import special_token_counts

if TYPE_CHECKING:
    from tunesmith.data.conversation import Conversation
    from tunesmith.stages import Stage
    from tunesmith.templates.chat import ChatTemplate

_CHUNK = 1000  # most conversations that are made at once
# Messages from which several processes win: in the second that they take to start, one makes 12,000 (6,000 couplets).
_WORTH_PROCESSES = 50_000
_MOST_PROCESSES = 16  # each holds a tokenizer, 250 MB with a large vocabulary
_QUIET = 2.0  # seconds before progress is told


@dataclass(frozen=True)
class Made:
    """What conversations became, and the account of it."""

    examples: ExampleTable
    truncated: int
    """Examples that lost their end."""
    dropped: int
    """Conversations of which at least one example was lost."""
    too_long: tuple[str, ...]
    """Conversations that are refused for their length: origin and tokens."""
    special_tokens: dict[str, int]
    """Sequences that begin or end with a special token twice."""
    notes: Counter[str]
    """What the template met with, and how often: see :mod:`tunesmith.templates.notes`."""

    @classmethod
    def join(cls, parts: Sequence[Made]) -> Made:
        """Return all *parts* as one, in order."""
        return cls(
            ExampleTable.join([part.examples for part in parts]),
            sum(part.truncated for part in parts),
            sum(part.dropped for part in parts),
            tuple(line for part in parts for line in part.too_long),
            {name: sum(part.special_tokens[name] for part in parts) for name in parts[0].special_tokens},
            sum((part.notes for part in parts), Counter()),
        )


@dataclass(frozen=True)
class Maker:
    """Makes examples in one way; what each process is given once."""

    stage: Stage
    template: ChatTemplate
    limit: int
    """Longest sequence, in tokens."""
    too_long: Literal["cut", "drop", "refuse"]

    def make(self, conversations: Sequence[Conversation]) -> Made:
        """Return what *conversations* become; raise :class:`DataError` for those that the stage cannot use."""
        template, limit = self.template, self.limit
        template.notes.clear()
        made = self.stage.examples(conversations, template, limit)
        examples: list[Example] = []
        truncated = dropped = 0
        too_long = []
        for each, conversation in zip(made, conversations, strict=True):
            lost = not each
            for example in each:
                longest = max(map(len, example.sequences), default=0)
                if longest > limit and self.too_long == "refuse":
                    too_long.append(f"{conversation.origin}: {longest} tokens")
                kept = self._cut(example)
                if kept is None:
                    lost = True
                else:
                    truncated += longest > limit
                    examples.append(kept)
            dropped += lost
        return Made(
            ExampleTable.of(examples),
            truncated,
            dropped,
            tuple(too_long),
            special_token_counts([s for e in examples for s in e.sequences], template.tokenizer),
            Counter(template.notes),
        )

    def _cut(self, example: Example) -> Example | None:
        """Return what of *example* is trained, within the longest length; None where nothing is left."""
        if self.too_long == "drop" and any(len(s) > self.limit for s in example.sequences):
            return None
        cut = tuple(s.cut(self.limit) for s in example.sequences)
        if not cut or any(s.trained == 0 for s in cut):
            return None
        return Example(cut, example.origin, example.values)


def make_examples(
    maker: Maker, conversations: Sequence[Conversation], listener: Listener = ignore, *, processes: int | None = None
) -> Made:
    """Return what *conversations* become, the same however many *processes* make it; left out, the fastest number.

    Raises :class:`DataError` that names every conversation the stage cannot use.
    """
    processes = processes or _choose_processes(maker, conversations)
    size = min(_CHUNK, max(1, len(conversations) // (4 * processes)))  # some for each, so that all end together
    chunks = [conversations[at : at + size] for at in range(0, len(conversations), size)] or [conversations]
    parts: list[Made] = []
    done, began = 0, time.monotonic()
    try:
        for part in _make_in_pool(maker, chunks, processes) if processes > 1 else map(maker.make, chunks):
            done += len(chunks[len(parts)])
            parts.append(part)
            if time.monotonic() - began > _QUIET:
                listener({"kind": "progress", "task": "tokenizing", "done": done, "total": len(conversations)})
    except DataError:
        # it speaks of one chunk; asked about all conversations, the stage names and counts all that it cannot use
        maker.stage.examples(conversations, maker.template, maker.limit)
        raise
    return Made.join(parts)


def _choose_processes(maker: Maker, conversations: Sequence[Conversation]) -> int:
    if sum(max(1, len(each.messages)) for each in conversations) < _WORTH_PROCESSES:
        return 1
    # code that came with a model is known to this process alone, and daemons may not have children
    known = type(maker.template.tokenizer).__module__.startswith("transformers.")
    if not known or multiprocessing.current_process().daemon:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_PROCESSES, cores // process_settings().local_world_size))


def _make_in_pool(maker: Maker, chunks: Sequence[Sequence[Conversation]], processes: int) -> Iterator[Made]:
    # spawned, not forked: the threads of torch and of the tokenizer do not survive a fork
    context = multiprocessing.get_context("spawn")
    done = 0
    with TemporaryDirectory(prefix="tunesmith-") as folder:
        # through a file: a process that dies before it has read what a pipe does not hold would leave us writing for
        # ever; those of a script without `if __name__ == "__main__"` do
        file = Path(folder) / "maker"
        file.write_bytes(pickle.dumps(maker))
        pool = ProcessPoolExecutor(processes, context, _start_worker, (str(file),))
        try:
            for made in pool.map(_make_in_worker, chunks):
                done += 1
                yield made
        except BrokenProcessPool:  # the system ended one of them, for its memory most likely
            yield from map(maker.make, chunks[done:])
        finally:
            pool.shutdown(cancel_futures=True)


_worker: Maker | None = None
"""What this process makes examples with, if it is one of a pool."""


def _start_worker(maker: str) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    prepare_worker()
    _worker = pickle.loads(Path(maker).read_bytes())


def _make_in_worker(conversations: Sequence[Conversation]) -> Made:
    assert _worker is not None
    return _worker.make(conversations)
