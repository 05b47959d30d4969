"""uvicorn on a socket, until it is told to end: then what was begun is finished first."""

from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.apps.server.app import create_app
from tunesmith.run.serving import Service
from tunesmith.run.serving_access import Access

# seconds that answers may still take when the server is told to end
_GRACE = 30


def run(
    service: Service,
    access: Access,
    socket: Any,
    log: Callable[[str], None],
    origins: Sequence[str],
    greeting: Callable[[], Sequence[str]],
) -> None:
    """Serve on *socket* until SIGINT or SIGTERM; *log* is given the *greeting*, and a line for each request."""
    import uvicorn

    config = uvicorn.Config(
        create_app(service, access, log, origins),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_GRACE,
    )
    for line in greeting():
        log(line)
    uvicorn.Server(config).run(sockets=[socket])
