"""Answers from a model: many prompts at once, or one as it is written."""

from __future__ import annotations

from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from tunesmith.generation.adapter_bank import AdapterBank
from tunesmith.generation.batch import Batch, BatchLimits, SlotBatch, WholeBatch, check_all
from tunesmith.generation.reply import Terms, begin
from tunesmith.generation.requests import Handle, Piece, Request
from tunesmith.generation.slots import REFUSALS, SlotModel, context_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.generation.settings import Generation


def answer_all(  # noqa: PLR0913 - what is asked, how, and with what
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    stop_ids: Sequence[int],
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    tokenizer: Any = None,
    conversations: Sequence[Conversation] = (),
) -> list[list[int]]:
    """Return the new token ids for each prompt, in order, without the end token that closed them.

    Each prompt has a chance of its own, which follows from the seed and its place: answers do not depend on how many
    are written at once.  Stop strings, constraints and scores need the *tokenizer*, scores and some constraints the
    *conversations* that the prompts were made of; the tokens that spell a stop string are left in (``cut_at`` takes
    them off the text).  *progress* is told how many are done.
    """
    batch = _make_batch(model, settings)
    context = context_of(SlotModel(model).config)
    needs_text = bool(settings.stop or settings.best_by)
    needs_tokenizer = needs_text or settings.constraint is not None
    assert tokenizer is not None or not needs_tokenizer, "stop strings, scores and constraints need the tokenizer"
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0

    def collect(index: int, piece: Piece | None, _: int) -> None:
        nonlocal done
        if piece is not None:
            answers[index] += piece.tokens
            if piece.finish_reason is not None:
                done += 1
                progress(done)

    # the longest first: what is left for the end is then short
    for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index])):
        asked = conversations[index] if conversations else None
        request = Request(tuple(prompts[index]) or (0,), settings, tuple(stop_ids), conversation=asked)
        terms = Terms(
            write=partial(collect, index),
            fail=_raise,
            context=max(context, len(request.prompt) + 1),
            tokenizer=tokenizer if needs_tokenizer else None,
            text=needs_text,
            seed=f"{seed if settings.seed is None else settings.seed} {index}",
        )
        for reply in begin(request, terms):
            batch.add(reply)
    while batch.replies:
        batch.step()
    return answers


def stream_answer(  # noqa: PLR0913 - what is asked, how, and with what
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    settings: Generation,
    *,
    stop_ids: Sequence[int],
    keep_control: bool = False,
    told: Callable[[Piece], None] = lambda _: None,
    conversation: Conversation | None = None,
) -> Iterator[str]:
    """Yield the text of the answer to one prompt as it is written; *keep_control* leaves control tokens in it.

    *told* is given every piece, for whoever counts tokens; constraints and scores may look at the *conversation*.
    """
    request = Request(tuple(prompt), settings, tuple(stop_ids), conversation=conversation, keep_control=keep_control)
    for piece in stream(model, tokenizer, request):
        told(piece)
        if piece.text:
            yield piece.text


def stream(model: Any, tokenizer: Any, request: Request) -> Iterator[Piece]:
    """Yield the pieces of the answer to *request*, which names no adapter; who stops reading stops the writing."""
    settings, handle = request.settings, Handle(request)
    batch = _make_batch(model, settings)

    terms = Terms(
        write=handle.write,
        fail=handle.fail,
        context=max(context_of(SlotModel(model).config), len(request.prompt) + 1),
        tokenizer=tokenizer,
        seed=settings.seed,
        cancelled=lambda: handle.cancelled,
    )
    for reply in begin(request, terms):
        batch.add(reply)

    def write() -> None:
        try:
            while batch.replies:
                batch.step()
        except REFUSALS as error:
            handle.fail(error)

    writer = Thread(target=write, daemon=True)
    writer.start()
    try:
        yield from handle.pieces()
    finally:
        handle.cancel()
        writer.join()


def _make_batch(model: Any, settings: Generation) -> Batch:
    """Return an empty batch: one that replies join and leave, where cache and settings can."""
    slots = SlotModel(model)
    bank, limits = AdapterBank(slots.base), BatchLimits(rows=settings.batch_size)
    joins = settings.num_beams == 1 and slots.misfit() is None
    batch: SlotBatch | WholeBatch = SlotBatch(slots, bank, limits) if joins else WholeBatch(model, bank, limits)
    batch.before_pass = partial(check_all, batch)
    return batch


def _raise(error: BaseException) -> None:
    raise error
