"""What every request passes first: the host it asks for, its key, its size; and the line in the log that it leaves."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.run.serving_access import Access
from tunesmith.run.serving_errors import RefusedError
from tunesmith.run.serving_metrics import Metrics

_OPEN = frozenset({"/health"})


class Gate:
    """An ASGI application around another one."""

    def __init__(self, app: Any, access: Access, metrics: Metrics, log: Callable[[str], None]) -> None:
        self.app, self.access, self.metrics, self.log = app, access, metrics, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun, status, key = time.monotonic(), 0, None
        scope["tunesmith"] = {}

        async def note_status(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                key = self._check(scope)
            except RefusedError as error:
                await _refuse(note_status, error)
            else:
                await self.app(scope, self._reader(receive), note_status)
        except Exception:
            status = status or 500  # who is around us answers
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.count("tunesmith_http_requests_total", route=route, status=str(status))
            self.log(_line(scope, status, time.monotonic() - begun, key))

    def _check(self, scope: Any) -> str | None:
        """Return the name of the request's key; raise :class:`RefusedError` for one that may not come in."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.access.check_host(headers.get("host", ""))
        key = None
        if scope["path"] not in _OPEN:
            key = self.access.check_key(headers.get("authorization", ""), headers.get("x-api-key", ""))
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.access.most_bytes:
            raise self._too_large()
        return key

    def _too_large(self) -> RefusedError:
        message = f"the request is larger than {self.access.most_bytes} bytes, the most that this server reads"
        return RefusedError(message, status=413, code="request_too_large")

    def _reader(self, receive: Any) -> Any:
        """Return *receive*, which gives up on bodies that are too large, or too slow to come."""
        from fastapi import HTTPException  # the one error that FastAPI lets through while it reads

        read, complete, until = 0, False, time.monotonic() + self.access.seconds_to_send

        async def receive_some() -> Any:
            nonlocal read, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the request did not come in time") from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                complete = not message.get("more_body", False)
            if read > self.access.most_bytes:
                raise HTTPException(413, str(self._too_large()))
            return message

        return receive_some


async def _refuse(send: Any, error: RefusedError) -> None:
    body = json.dumps(error.as_data(), ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _line(scope: Any, status: int, seconds: float, key: str | None) -> str:
    """Return the log's line: who, what, how it ended, how long it took; never what was said, nor a key."""
    told: Mapping[str, Any] = scope["tunesmith"]
    client = (scope.get("client") or ("-",))[0]
    who = f"{client} ({key})" if key else client
    path = json.dumps(scope["path"][:200], ensure_ascii=True)[1:-1]  # a line break in it would forge a line
    detail = "".join(f" {name}={value}" for name, value in told.items())
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {who} {scope['method']} {path} {status} {seconds:.3f}s{detail}"
