"""API keys: made here, shown once, kept as hashes in a file that only its owner reads."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_json
from tunesmith.core.registry import suggest

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True)
class Key:
    """A key as it is kept.  It has 256 bits of chance, so that one round of SHA-256 hides it."""

    name: str
    sha256: str
    added: str


class KeyFile:
    """The keys in a file; a running server sees at once what is added to it and removed from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[tuple[int, int, int], list[Key]] | None = None

    def read(self) -> list[Key]:
        """Return the keys; none where there is no file.  Raises :class:`UserError` for a file that holds no keys."""
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return []
        mark = (state.st_mtime_ns, state.st_size, state.st_ino)
        if self._read is None or self._read[0] != mark:
            try:
                found = [Key(**each) for each in json.loads(self.path.read_text("utf-8"))["keys"]]
            except (ValueError, TypeError, KeyError, OSError) as error:
                raise UserError(
                    f"{self.path} is no file of keys ({error}); make one with: tunesmith keys add NAME"
                ) from None
            self._read = mark, found
        return self._read[1]

    def add(self, name: str) -> str:
        """Make a key called *name* and return it; it can never be read again."""
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name of a key; use letters, digits, dots, dashes, at most 64")
        keys = self.read()
        if any(key.name == name for key in keys):
            raise UserError(f"there is a key called {name!r}; remove it first, or take another name")
        key = f"ts-{secrets.token_urlsafe(32)}"
        added = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write([*keys, Key(name, _digest(key), added)])
        return key

    def remove(self, name: str) -> None:
        """Let the key called *name* open nothing any more."""
        keys = self.read()
        if all(key.name != name for key in keys):
            names = [key.name for key in keys]
            raise UserError(f"no key is called {name!r}{suggest(name, names)}; there are {', '.join(names) or 'none'}")
        self._write([key for key in keys if key.name != name])

    def find(self, given: str) -> str | None:
        """Return the name of the key *given*, or None; the time it takes tells nothing about the keys."""
        digest, found = _digest(given), None
        for key in self.read():
            if hmac.compare_digest(digest, key.sha256):
                found = key.name
        return found

    def _write(self, keys: list[Key]) -> None:
        write_json(self.path, {"keys": [asdict(key) for key in keys]})
        self.path.chmod(0o600)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
