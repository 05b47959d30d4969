"""One reply while it is written: its tokens, its chance, what it may say next, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any, NamedTuple

from tunesmith.generation.constrained import start_walk
from tunesmith.generation.requests import Piece, TokenLogProbability, join_pieces
from tunesmith.generation.text import TextStream

if TYPE_CHECKING:
    from tunesmith.generation.constraints import Walk
    from tunesmith.generation.requests import FinishReason, Request

AdapterWeights = tuple[tuple[int, float], ...]
"""The keys of the adapters that write a reply, each with its weight; none of them is the base."""

# what a constraint, a score or a reader of pieces raises that does something wrong
_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)


class Choice(NamedTuple):
    """A token that was chosen, and what is told about it."""

    token: int
    told: TokenLogProbability | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a reply is written with, besides its request."""

    write: Callable[[Piece | None, int], None]
    """Takes each piece, where there is one, and how many tokens were computed for it."""
    fail: Callable[[BaseException], None]
    """Takes what went wrong with this reply alone; nothing is written after it."""
    context: int
    """Most tokens that prompt and reply may have together."""
    tokenizer: Any = None
    """Without one, pieces have tokens and no text."""
    text: bool = True
    """Whether pieces have text: decoding takes time, and who reads whole answers does it at the end."""
    seed: int | str | None = None
    """Equal seeds write alike; None is chance."""
    adapter: AdapterWeights = ()
    deadline: float | None = None
    """When to stop, by the monotonic clock."""
    cancelled: Callable[[], bool] = lambda: False


class Reply:
    """A reply to a request."""

    def __init__(self, request: Request, terms: Terms) -> None:
        """Begin it; raise :class:`UserError` where its constraint cannot begin."""
        self.request, self.settings, self.adapter, self._terms = request, request.settings, terms.adapter, terms
        self.prompt = request.prompt
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.log_probability = 0.0
        """Of all tokens so far, where the sampler tells it."""
        self.wants_log_probability = self.settings.log_probabilities is not None or self.settings.best_of > 1
        self.most = max(1, min(self.settings.max_new_tokens, terms.context - len(self.prompt)))
        self.stop_ids = frozenset(request.stop_ids)
        self._chance = Random(SystemRandom().getrandbits(64) if terms.seed is None else terms.seed)
        self._text = None
        if terms.tokenizer is not None and terms.text:
            self._text = TextStream(terms.tokenizer, self.settings.stop, keep_control=request.keep_control)
        self.walk: Walk | None = None
        if self.settings.constraint is not None:
            seed, asked = self._chance.getrandbits(63), request.conversation
            self.walk = start_walk(self.settings, terms.tokenizer, asked, seed=seed, most=self.most)

    def chance(self) -> float:
        """Return the reply's own next random number in [0, 1)."""
        return self._chance.random()

    def allowed(self) -> Any:
        """Return which tokens may come next, a boolean array over the tokenizer's vocabulary; None where any may."""
        return None if self.walk is None else self.allowed_at(self.walk)

    def allowed_at(self, walk: Walk) -> Any:
        """Return which tokens may come next at *walk*: the reply's own end where it is complete, besides the walk's."""
        allowed = walk.allowed().copy()
        allowed[[token for token in self.stop_ids if token < len(allowed)]] = walk.finished
        return allowed

    def take(self, choice: Choice) -> None:
        """Write down the next token; what constraint, score or reader do wrong ends this reply alone."""
        try:
            self._take(choice)
        except _FAULTS as error:
            self.fail(error)

    def _take(self, choice: Choice) -> None:
        token, told = choice
        if told is not None:
            self.log_probability += told.log_probability
        shown = (told,) if told is not None and self.settings.log_probabilities is not None else ()
        if token in self.stop_ids:
            self._finish(Piece("", end=shown[0] if shown else None), "stop", computed=1)
            return
        self.tokens.append(token)
        text = "" if self._text is None else self._text.push(token)
        piece = Piece(text, (token,), shown)
        if (self._text is not None and self._text.stop is not None) or self._completes(token):
            self._finish(piece, "stop", computed=1)
        elif len(self.tokens) >= self.most:
            self._finish(piece, "length", computed=1)
        else:
            self._terms.write(piece, 1)

    def _completes(self, token: int) -> bool:
        """Go on with the constraint; say whether nothing but an end may follow."""
        if self.walk is None:
            return False
        self.walk = self.walk.advance(token)
        return self.walk.finished and not self.walk.allowed().any()

    def check(self, now: float) -> None:
        """End the reply if it was cancelled, or its deadline is before *now*."""
        if self._terms.cancelled():
            self.end("cancelled")
        elif self._terms.deadline is not None and now >= self._terms.deadline:
            self.end("timeout")

    def end(self, reason: FinishReason, computed: int = 0) -> None:
        """Finish the reply as it is."""
        if self.finish_reason is None:
            self._finish(Piece(""), reason, computed)

    def fail(self, error: BaseException) -> None:
        """Give the reply up because of *error*."""
        if self.finish_reason is None:
            self.finish_reason = "error"
            self._terms.fail(error)

    def _finish(self, piece: Piece, reason: FinishReason, computed: int) -> None:
        rest = "" if self._text is None else self._text.finish()
        stop = None if self._text is None else self._text.stop
        self.finish_reason = "stop" if stop is not None else reason
        last = replace(piece, text=piece.text + rest, finish_reason=self.finish_reason, stop=stop)
        self._terms.write(last, computed)

    @property
    def mean_log_probability(self) -> float:
        """The likelihood of the reply, by which lengths can be compared."""
        return self.log_probability / max(1, len(self.tokens))


def begin(request: Request, terms: Terms) -> list[Reply]:
    """Return the replies that are to be written for *request*: one, or several of which the best is handed on.

    Raises :class:`UserError` where its constraint cannot begin.
    """
    return [Reply(request, terms)] if request.settings.best_of == 1 else _BestOf(request, terms).replies


class _BestOf:
    """Several replies to one request, of which the best is handed on as one piece when all are finished."""

    def __init__(self, request: Request, terms: Terms) -> None:
        self._request, self._terms = request, terms
        seed = SystemRandom().getrandbits(64) if terms.seed is None else terms.seed
        self._pieces: list[list[Piece]] = [[] for _ in range(request.settings.best_of)]
        self._found: list[tuple[float, Piece]] = []
        self.replies = [
            Reply(request, replace(terms, write=partial(self._take, number), seed=f"{seed} {number}"))
            for number in range(request.settings.best_of)
        ]

    def _take(self, number: int, piece: Piece | None, computed: int) -> None:
        best = None
        if piece is not None:
            self._pieces[number].append(piece)
            if piece.finish_reason is not None:
                whole = join_pieces(iter(self._pieces[number]))
                self._found.append((self._judge(self.replies[number], whole), whole))
                if len(self._found) == len(self.replies):
                    best = max(self._found, key=lambda each: each[0])[1]
        self._terms.write(best, computed)

    def _judge(self, reply: Reply, whole: Piece) -> float:
        score, conversation = self._request.settings.best_by, self._request.conversation
        if score is None or conversation is None:
            return reply.mean_log_probability
        return score.score(conversation, whole.text).value
