"""Who may reach a server: where it listens, which hosts and keys it takes, how much it reads."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.core.settings import config_folder
from tunesmith.run.serving_errors import RefusedError
from tunesmith.run.serving_keys import KeyFile

if TYPE_CHECKING:
    from pathlib import Path

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, kw_only=True)
class Access:
    """What is asked of a request before anything else."""

    keys: KeyFile | None = None
    """Keys that are taken; None, or none in it, asks for no key."""
    needs_key: bool = False
    """Whether to refuse everybody while there are no keys, because others can reach the server."""
    hosts: frozenset[str] | None = None
    """Names by which the server may be called; None takes any."""
    most_bytes: int = 8 * 2**20
    """Largest request."""
    seconds_to_send: float = 60.0
    """How long a client may take to send it."""

    def check_host(self, header: str) -> None:
        """Raise :class:`RefusedError` for a name that a web page may have made lead here (DNS rebinding)."""
        if self.hosts is not None and (name := _host_name(header)) not in self.hosts:
            message = (
                f"this server is called {', '.join(sorted(self.hosts))}, not {name!r}; a key would let any name in"
            )
            raise RefusedError(message, status=403, code="host_not_allowed")

    def check_key(self, authorization: str, api_key: str = "") -> str | None:
        """Return the name of the key that a request brought, None where none is needed; raise without a right one."""
        if self.keys is None or not (self.keys.read() or self.needs_key):
            return None
        scheme, _, given = authorization.partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else api_key
        name = self.keys.find(given) if given else None
        if name is None:
            what = "this API key is not known here" if given else "an API key is needed: Authorization: Bearer KEY"
            raise RefusedError(what, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return name


def default_key_file() -> Path:
    """Return where keys are kept unless another file is named."""
    return config_folder() / "keys.json"


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach *host*."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def decide_access(host: str, keys: KeyFile, *, without_key: bool, most_bytes: int) -> Access:
    """Return who may reach a server that listens on *host*; raise :class:`UserError` where anybody could.

    *without_key* is the explicit wish to let them.
    """
    has_keys = bool(keys.read())
    if without_key and has_keys:
        raise UserError(f"--no-key-i-understand: there are keys in {keys.path}; remove them, or leave the option out")
    local = is_loopback(host)
    if not local and not has_keys and not without_key:
        raise UserError(
            f"--host {host}: others can reach that, and there is no key; make one with: tunesmith keys add NAME "
            "(or say --no-key-i-understand)"
        )
    hosts = _LOCAL_NAMES | {host.strip("[]").lower()} if local and not has_keys else None
    return Access(keys=keys, needs_key=has_keys or not (local or without_key), hosts=hosts, most_bytes=most_bytes)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise :class:`UserError` where the place is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}; try another --port, or 0 for any free one"
        ) from None
    # asyncio does so for sockets that it makes; else the body of an answer waits 40 ms until its head was received
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _host_name(header: str) -> str:
    text = header.strip().lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.rpartition(":")[0] or text
