"""What whoever wants text asks of an engine, and what comes back: requests, pieces, handles and the engine's contract.

Nothing here imports torch: servers and their tests are written against this file.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tunesmith.data.conversation import Conversation
    from tunesmith.generation.settings import Generation

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]
"""``stop``: an end token or a stop string · ``length``: ``max_new_tokens`` or the context is full · ``cancelled``: by
the handle, or the engine closed · ``timeout``: the request's deadline · ``error``: :attr:`Handle.error` says what."""


class QueueFullError(UserError):
    """More requests wait than the engine keeps; it may be tried again in ``wait_seconds``."""

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class ContextTooLongError(UserError):
    """The prompt leaves no room in the model's context; ``limit`` and ``found`` are tokens."""

    def __init__(self, message: str, limit: int, found: int) -> None:
        super().__init__(message)
        self.limit, self.found = limit, found


class UnknownAdapterError(UserError):
    """The engine has no adapter of that name."""


class EngineClosedError(UserError):
    """The engine takes no more requests."""


class ReplyFailedError(RuntimeError):
    """A reply could not be finished because of a fault of ours, not of the request."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been chosen, and the natural logarithm of its probability."""

    token: int
    log_probability: float


@dataclass(frozen=True, slots=True)
class TokenLogProbability:
    """One token of a reply; *alternatives* are the likeliest ones at its place, likeliest first.

    Probabilities are the model's own: before temperature, penalties, truncation and constraints.
    """

    token: int
    log_probability: float
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a reply: the text never ends within a character, and never holds part of a stop string.

    A piece may have tokens and no text (its characters are not complete), and the last one text and no tokens.  The
    last one alone has a ``finish_reason``; the token that ended the reply is in no piece, the tokens that spell a stop
    string are.
    """

    text: str
    tokens: tuple[int, ...] = ()
    log_probabilities: tuple[TokenLogProbability, ...] = ()
    """One for each of ``tokens`` where the settings ask for them, else none."""
    finish_reason: FinishReason | None = None
    stop: str | None = None
    """The stop string that ended the reply; None for a token."""
    end: TokenLogProbability | None = None
    """The token that ended the reply, where the settings ask for log-probabilities."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a reply took, in tokens; completions count all that were computed, the end token too."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on with it."""

    prompt: tuple[int, ...]
    settings: Generation
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the reply."""
    adapter: str | Mapping[str, float] | None = None
    """The adapter that answers, a blend of several by weight, or None for the base."""
    conversation: Conversation | None = None
    """What was asked, for scores (``best_by``) and constraints that look at it."""
    deadline_seconds: float | None = None
    """The reply ends with ``timeout`` when this long has passed since it was submitted, waiting included."""
    keep_control: bool = False
    """Leave control tokens in the text: whoever reads tool calls needs them."""


class Handle:
    """A reply as it comes.  All methods may be called from any thread.

    A reader that is slow, or never comes, holds nobody up: pieces wait here.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.submitted = time.monotonic()
        self.error: BaseException | None = None
        """Why the reply could not be finished, where its last piece says ``error``."""
        self._arrived = threading.Condition()
        self._waiting: deque[Piece] = deque()
        self._callback: Callable[[Piece], None] | None = None
        self._cancelled = threading.Event()
        self._finished = False
        self._completion_tokens = 0

    def __iter__(self) -> Iterator[Piece]:
        return self.pieces()

    def pieces(self, timeout: float | None = None) -> Iterator[Piece]:
        """Yield pieces until the one with a ``finish_reason``.

        Raises ``TimeoutError`` where none came for *timeout* seconds, and :class:`ReplyFailedError` for ``error``.
        """
        while True:
            with self._arrived:
                if not self._arrived.wait_for(lambda: self._waiting, timeout):
                    raise TimeoutError(f"no piece of the reply came within {timeout:g} s")
                piece = self._waiting.popleft()
            if piece.finish_reason == "error":
                raise ReplyFailedError(f"the reply could not be finished: {self.error}") from self.error
            yield piece
            if piece.finish_reason is not None:
                return

    def on_piece(self, callback: Callable[[Piece], None]) -> None:
        """Have *callback* called with every piece, those that wait already first, instead of :meth:`pieces`.

        It is called from the engine's thread and must only hand the piece on, such as by
        ``loop.call_soon_threadsafe(queue.put_nowait, piece)``; a ``RuntimeError`` (a closed loop) cancels the reply.
        """
        with self._arrived:
            self._callback = callback
            while self._waiting:
                callback(self._waiting.popleft())

    def cancel(self) -> None:
        """Stop computing: the last piece says ``cancelled``, unless the reply was complete already."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._cancelled.is_set()

    @property
    def finished(self) -> bool:
        """Whether the last piece has been written."""
        return self._finished

    @property
    def usage(self) -> Usage:
        """Tokens so far; of ``best_of`` replies, all that were written."""
        return Usage(len(self.request.prompt), self._completion_tokens)

    def reply(self, timeout: float | None = None) -> Piece:
        """Return all pieces as one; raise as :meth:`pieces` does."""
        return join_pieces(self.pieces(timeout))

    # --- the engine's side ---

    def write(self, piece: Piece | None, computed: int = 0) -> None:
        """Count *computed* tokens, and hand out *piece*, where there is one; the engine's."""
        with self._arrived:
            if self._finished:
                return
            self._completion_tokens += computed
            if piece is None:
                return
            self._finished = piece.finish_reason is not None
            if self._callback is None:
                self._waiting.append(piece)
                self._arrived.notify_all()
                return
            try:
                self._callback(piece)
            except RuntimeError:  # its event loop is closed: nobody is left to read
                self._cancelled.set()

    def fail(self, error: BaseException) -> None:
        """End the reply with *error*; the engine's."""
        self.error = error
        self.write(Piece("", finish_reason="error"))


def join_pieces(pieces: Iterator[Piece]) -> Piece:
    """Return *pieces* as one."""
    found = list(pieces)
    return Piece(
        "".join(piece.text for piece in found),
        tuple(token for piece in found for token in piece.tokens),
        tuple(each for piece in found for each in piece.log_probabilities),
        found[-1].finish_reason,
        found[-1].stop,
        found[-1].end,
    )


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter in memory."""

    name: str
    folder: Path
    rank: int
    running: int
    """Replies that it is writing, or a part of."""


@dataclass(frozen=True)
class EngineStats:
    """Counts since the start, and what is going on now."""

    waiting: int
    """Requests that no token was computed for."""
    running: int
    """Replies being written: the size of the batch."""
    submitted: int = 0
    refused: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)
    """Replies that ended, by their finish reason."""
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Of these, the ones that were not read, as other requests had read them."""
    completion_tokens: int = 0
    steps: int = 0
    """Passes that wrote a token for each running reply; with ``completion_tokens`` they tell the mean batch."""
    cache_tokens: int = 0
    """Tokens that there is room for in the cache as it is."""
    adapters: int = 0
    continuous: bool = True
    """Whether requests join while others are written; else one batch runs after the other."""


class Engine(Protocol):
    """Writes replies to many requests at once.  All methods may be called from any thread."""

    context: int
    """Most tokens that a prompt and its reply may have together."""

    def submit(self, request: Request) -> Handle:
        """Take *request* in and return at once.

        Raises :class:`QueueFullError`, :class:`ContextTooLongError`, :class:`UnknownAdapterError`,
        :class:`EngineClosedError`, or :class:`UserError` for settings that this model cannot follow.
        """
        ...

    def adapters(self) -> list[AdapterInfo]:
        """Return the adapters in memory, in the order in which they were loaded."""
        ...

    def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        """Load the LoRA adapter in *folder* (safetensors only) beside the others; requests go on running.

        Raises :class:`UserError` for a name that is taken, and for what is no adapter of this base.
        """
        ...

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for *name*, and free it when those that use it are finished; return at once.

        Raises :class:`UnknownAdapterError`.
        """
        ...

    def embed(
        self, prompts: Sequence[Sequence[int]], adapter: str | Mapping[str, float] | None = None
    ) -> list[list[float]]:
        """Return the mean of the last hidden states over each prompt.

        Raises as :meth:`submit` does, and :class:`UserError` for a model that gives no hidden states.
        """
        ...

    def stats(self) -> EngineStats:
        """Return counts, for metrics and health."""
        ...

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests; finish those taken (*drain*) or cancel them; return when the thread has ended."""
        ...
