"""Answers on their way out: whole, or as server-sent events; and nothing computed for a client that has left."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from tunesmith.generation.requests import Piece
from tunesmith.run.serving import Exchange
from tunesmith.run.serving_errors import RefusedError

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def respond(request: Any, exchange: Exchange) -> Any:
    """Return the response to *request* that *exchange* becomes."""
    from starlette.background import BackgroundTask
    from starlette.responses import JSONResponse, Response, StreamingResponse

    def close() -> None:
        exchange.close()
        request.scope["tunesmith"]["completion_tokens"] = exchange.completion_tokens  # for the log

    if exchange.stream:
        done = BackgroundTask(close)  # called, too, when a client leaves before the first event is asked for
        return StreamingResponse(_events(exchange), media_type="text/event-stream", headers=_HEADERS, background=done)
    reading, leaving = asyncio.ensure_future(_read(exchange)), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(reading.result()) if reading.done() else Response(status_code=499)
    finally:
        reading.cancel()
        leaving.cancel()
        close()


async def _pieces(exchange: Exchange) -> AsyncIterator[tuple[int, Piece]]:
    """Yield the pieces of all choices as they come, each with its choice's number."""
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece]]()

    def hand_on(index: int, piece: Piece) -> None:
        loop.call_soon_threadsafe(waiting.put_nowait, (index, piece))

    for index, handle in enumerate(exchange.handles):
        handle.on_piece(partial(hand_on, index))
    left = len(exchange.handles)
    while left:
        index, piece = await waiting.get()
        yield index, piece
        left -= piece.finish_reason is not None


async def _read(exchange: Exchange) -> dict[str, Any]:
    exchange.begin()
    async for index, piece in _pieces(exchange):
        exchange.feed(index, piece)
    return exchange.body()


async def _left(request: Any) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(exchange: Exchange) -> AsyncIterator[str]:
    try:
        for chunk in exchange.begin():
            yield _event(chunk)
        async for index, piece in _pieces(exchange):
            for chunk in exchange.feed(index, piece):
                yield _event(chunk)
        for chunk in exchange.end():
            yield _event(chunk)
        if exchange.answer.last_event:
            yield f"data: {exchange.answer.last_event}\n\n"
    except RefusedError as error:  # the status is sent already: the stream itself says what happened
        yield _event(exchange.answer.error(error))
    finally:
        exchange.close()


def _event(data: dict[str, Any]) -> str:
    name = f"event: {data['type']}\n" if "type" in data else ""  # Anthropic's events have names
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n"
