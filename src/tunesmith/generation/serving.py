"""The engine that serves: one thread, one model, many requests at once, each with its own settings and adapter.

transformers brings a continuous batching of its own (``generation/continuous_batching``).  It is not used here because
a request there may differ from others in temperature, top-k and top-p only: not in its adapter, its constraint, its
penalties or its seed; and on a CPU it computes attention between all tokens of all requests, and masks.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.registry import suggest
from tunesmith.generation.adapter_bank import AdapterBank
from tunesmith.generation.batch import Batch, BatchLimits, SlotBatch, WholeBatch, check_all
from tunesmith.generation.reply import AdapterWeights, Reply, Terms, begin
from tunesmith.generation.requests import (
    AdapterInfo,
    ContextTooLongError,
    EngineClosedError,
    EngineStats,
    Handle,
    QueueFullError,
    UnknownAdapterError,
)
from tunesmith.generation.slots import REFUSALS, UNLIMITED, SlotModel, context_of
from tunesmith.models.fingerprint import check_base

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tunesmith.generation.requests import Piece, Request


@dataclass(frozen=True)
class _Loaded:
    key: int
    folder: Path
    rank: int


class BatchedEngine:
    """Writes replies with a transformers model on one thread; see :class:`~tunesmith.generation.requests.Engine`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limits: BatchLimits | None = None,
        waiting: int = 256,
        context: int | None = None,
        base: Path | None = None,
        notify: Listener = ignore,
    ) -> None:
        """Start the thread.  *waiting* replies may wait for their turn, *context* may be less than the model's.

        *base* is the folder of the model, with which adapters are compared.  What serves worse than it might is told
        to *notify*.
        """
        self.limits = limits or BatchLimits()
        self._model, self._tokenizer, self._base_folder, self._most_waiting = model.eval(), tokenizer, base, waiting
        slots = SlotModel(model)
        self.context = min(context_of(slots.config), context or UNLIMITED)
        self._vocabulary_size = int(slots.base.get_input_embeddings().num_embeddings)
        self._bank = AdapterBank(slots.base)
        self._base = slots.base
        self._slots, self._joined, self._whole = slots, None, WholeBatch(model, self._bank, self.limits)
        self._whole.before_pass = partial(check_all, self._whole)
        if why := slots.misfit():
            text = f"requests cannot join a batch that runs, for {slots.config.model_type}: {why}; one batch a time"
            notify({"kind": "notice", "text": text})
        else:
            self._joined = SlotBatch(slots, self._bank, self.limits)
            self._joined.before_pass = partial(check_all, self._joined)
        self._changed = threading.Condition()
        self._arrived: list[Reply] = []
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._loaded: dict[str, _Loaded] = {}
        self._leaving: set[int] = set()
        self._users: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._keys = self._open = self._writing = 0
        self._seconds = 1.0
        self._closing = self._ended = False
        self._thread = threading.Thread(target=self._run, name="tunesmith-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Handle:
        """Take *request* in and return at once; raise as the contract says."""
        self._check(request)
        settings = request.settings
        with self._changed:
            self._refuse_if_full(settings.best_of)
            adapter = self._weights(request.adapter)
            for key, _ in adapter:
                self._users[key] += 1
        handle = Handle(request)
        deadline = None if request.deadline_seconds is None else handle.submitted + request.deadline_seconds
        terms = Terms(
            write=partial(self._deliver, handle, adapter),
            fail=partial(self._give_up, handle, adapter),
            context=self.context,
            tokenizer=self._tokenizer,
            seed=settings.seed,
            adapter=adapter,
            deadline=deadline,
            cancelled=lambda: handle.cancelled or handle.finished,
        )
        try:
            replies = begin(request, terms)
        except UserError:
            with self._changed:
                self._release(adapter)
            raise
        with self._changed:
            if self._closing:
                self._release(adapter)
                raise EngineClosedError("the engine is closed: it takes no more requests")
            self._arrived += replies
            self._open += settings.best_of
            self._counts["submitted"] += 1
            self._counts["prompt_tokens"] += len(request.prompt)
            self._changed.notify_all()
        return handle

    def adapters(self) -> list[AdapterInfo]:
        """Return the adapters in memory, in the order in which they were loaded."""
        with self._changed:
            return [AdapterInfo(name, a.folder, a.rank, self._users[a.key]) for name, a in self._loaded.items()]

    def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        """Load the LoRA adapter in *folder* (safetensors only) beside the others; requests go on running."""
        self._check_free(name)
        if self._base_folder is not None:
            check_base(folder, self._base_folder)
        factors = self._bank.read(folder)

        def add() -> None:
            self._check_free(name)
            self._keys += 1
            self._bank.add(self._keys, factors)
            with self._changed:
                self._loaded[name] = _Loaded(self._keys, folder, factors.rank)

        self._between_passes(add)
        return AdapterInfo(name, folder, factors.rank, 0)

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for *name*, and free it when those that use it are finished; return at once."""
        with self._changed:
            if name not in self._loaded:
                raise self._unknown(name)
            self._leaving.add(self._loaded.pop(name).key)
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        """Return counts, for metrics and health."""
        with self._changed:
            joined = self._joined
            return EngineStats(
                waiting=max(0, self._open - self._writing),
                running=min(self._open, self._writing),
                submitted=self._counts["submitted"],
                refused=self._counts["refused"],
                finished=dict(self._finished),
                prompt_tokens=self._counts["prompt_tokens"],
                completion_tokens=self._counts["completion_tokens"],
                steps=self._whole.steps + (joined.steps if joined else 0),
                reused_tokens=joined.reused if joined else 0,
                cache_tokens=self._slots.room,
                adapters=len(self._loaded),
                continuous=joined is not None,
            )

    def embed(
        self, prompts: Sequence[Sequence[int]], adapter: str | Mapping[str, float] | None = None
    ) -> list[list[float]]:
        """Return the mean of the last hidden states over each prompt, computed between the passes of replies."""
        from tunesmith.generation.embeddings import embed_tokens

        for found in map(len, prompts):
            if not 0 < found <= self.context:
                text = f"a text has {found} tokens; embedded are 1 to {self.context}"
                raise ContextTooLongError(text, self.context, found)
        vectors: list[list[float]] = []
        for prompt in prompts:  # one at a time: replies go on in between

            def compute(prompt: Sequence[int] = prompt) -> None:
                with self._changed:
                    weights = self._weights(adapter)
                self._bank.use([weights])
                vectors.append(embed_tokens(self._base, prompt))

            self._between_passes(compute)
        return vectors

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests; finish those taken (*drain*) or cancel them; return when the thread has ended."""
        with self._changed:
            self._closing = True
            if not drain:
                self._ended = True
            self._changed.notify_all()
        self._thread.join()

    # --- checks, in the caller's thread ---

    def _check(self, request: Request) -> None:
        found = len(request.prompt)
        if not found:
            raise UserError("the prompt is empty: give at least one token")
        if found >= self.context:
            raise ContextTooLongError(
                f"the prompt has {found} tokens, and prompt and answer may have {self.context} together",
                self.context,
                found,
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < self._vocabulary_size:
            raise UserError(f"the prompt has token ids beyond the {self._vocabulary_size} that the model has")
        settings = request.settings
        if settings.best_by is not None and request.conversation is None:
            raise UserError("best_by: a score needs the conversation that is answered; leave it out here")

    def _refuse_if_full(self, replies: int) -> None:
        if self._closing:
            raise EngineClosedError("the engine is closed: it takes no more requests")
        before = self._open - self.limits.rows
        if before + replies > self._most_waiting:
            self._counts["refused"] += 1
            wait = max(1.0, self._seconds * max(1, before) / self.limits.rows)
            raise QueueFullError(f"{max(0, before)} requests wait already; try again in {wait:.0f} s", wait)

    def _weights(self, adapter: str | Mapping[str, float] | None) -> AdapterWeights:
        if adapter is None:
            return ()
        named = {adapter: 1.0} if isinstance(adapter, str) else dict(adapter)
        for name in named:
            if name not in self._loaded:
                raise self._unknown(name)
        return tuple(sorted((self._loaded[name].key, float(weight)) for name, weight in named.items() if weight))

    def _unknown(self, name: str) -> UnknownAdapterError:
        there = f"there are {', '.join(self._loaded)}" if self._loaded else "none is loaded"
        return UnknownAdapterError(f"no adapter called {name!r}{suggest(name, list(self._loaded))}; {there}")

    def _check_free(self, name: str) -> None:
        if name in self._loaded:
            raise UserError(f"there is an adapter called {name!r} already; unload it first, or give another name")

    # --- what the thread does, and tells ---

    def _run(self) -> None:
        try:
            self._serve()
        finally:  # whatever ended it, nobody is left waiting
            with self._changed:
                self._closing = True
                left = [*self._arrived, *(reply for batch in self._batches() for reply in batch.replies)]
            for reply in left:
                reply.fail(EngineClosedError("the engine has stopped"))
            for _, done in self._commands:
                done.set_exception(EngineClosedError("the engine has stopped"))

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._arrived or self._commands or self._busy() or self._leaving_now() or self._closing):
                    self._changed.wait()
                arrived, self._arrived = self._arrived, []
                if self._closing and not (arrived or self._commands or self._busy()):
                    self._writing = 0
                    return
            for reply in arrived:
                joins = self._joined is not None and reply.settings.num_beams == 1
                (self._joined if joins and self._joined else self._whole).add(reply)
            if self._ended:
                for batch in self._batches():
                    for reply in batch.replies:
                        reply.end("cancelled")
            while self._commands:
                self._obey(*self._commands.popleft())
            self._free_adapters()
            for batch in self._batches():
                self._step(batch)
            with self._changed:
                self._writing = sum(batch.writing for batch in self._batches())

    def _step(self, batch: Batch) -> None:
        replies = batch.replies
        try:
            batch.step()
        except REFUSALS as error:  # no memory, or a fault of ours: those in the batch are lost, the engine is not
            for reply in replies:
                reply.fail(error)
            batch.clear()

    def _obey(self, command: Callable[[], None], done: Future[None]) -> None:
        try:
            command()
        except (UserError, *REFUSALS) as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def _between_passes(self, command: Callable[[], None]) -> None:
        done: Future[None] = Future()
        with self._changed:
            if self._closing:
                raise EngineClosedError("the engine is closed")
            self._commands.append((command, done))
            self._changed.notify_all()
        done.result()

    def _batches(self) -> list[Batch]:
        return [self._whole] if self._joined is None else [self._joined, self._whole]

    def _busy(self) -> bool:
        return any(batch.replies for batch in self._batches())

    def _leaving_now(self) -> list[int]:
        return [key for key in self._leaving if not self._users[key]]

    def _free_adapters(self) -> None:
        with self._changed:
            free = self._leaving_now()
            self._leaving -= set(free)
        for key in free:
            self._bank.remove(key)

    def _release(self, adapter: AdapterWeights) -> None:
        for key, _ in adapter:
            self._users[key] -= 1

    def _deliver(self, handle: Handle, adapter: AdapterWeights, piece: Piece | None, computed: int) -> None:
        with self._changed:
            self._counts["completion_tokens"] += computed
            if piece is not None and piece.finish_reason is not None:
                self._close_one(handle, adapter, piece.finish_reason)
        handle.write(piece, computed)

    def _give_up(self, handle: Handle, adapter: AdapterWeights, error: BaseException) -> None:
        with self._changed:
            if handle.finished:
                return
            self._close_one(handle, adapter, "error")
        handle.fail(error)

    def _close_one(self, handle: Handle, adapter: AdapterWeights, reason: str) -> None:
        self._open -= handle.request.settings.best_of
        self._finished[reason] += 1
        self._release(adapter)
        self._seconds += 0.2 * (time.monotonic() - handle.submitted - self._seconds)
