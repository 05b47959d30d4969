"""Which server writes the answers that an online stage learns from; no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from tunesmith.core.errors import Problem
from tunesmith.core.registry import Block
from tunesmith.core.settings import KEY_VARIABLE


def _address(url: str) -> str:
    try:
        found = urlsplit(url)
    except ValueError:
        found = urlsplit("")
    if found.scheme not in ("http", "https") or not found.hostname:
        raise ValueError(f"{url!r} is no address; write one such as http://localhost:8000/v1")
    if "@" in found.netloc:
        raise ValueError("no name or key in an address: it is kept with the run; see key_variable")
    return url.rstrip("/")


class SamplingServer(Block):
    """A server that writes the answers with the adapter as it is: vLLM, or ``tunesmith serve``.

    Before each step that samples, the adapter is saved to a folder, loaded by the server under a new name, and the one
    before it unloaded.
    """

    url: Annotated[str, AfterValidator(_address)]
    """Where it is, up to ``/v1``: ``http://localhost:8000/v1``."""

    adapters: Annotated[str, Field(min_length=1)]
    """Folder that both can reach: adapters are written there; the server needs ``--adapter-folder`` (vLLM none)."""

    adapters_there: Annotated[str, Field(min_length=1)] | None = None
    """What the server calls that folder, where it sees it at another place; left out, the same."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """What the server calls the base model; left out, the only one that it has."""

    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = KEY_VARIABLE
    """Environment variable that holds the server's key; the key itself is written nowhere."""

    def check(self, recipe: Any, constrained: bool) -> Iterable[Problem]:
        """Yield what cannot be handed to a server, or asked of one; *constrained* is whether answers have a form."""
        yield from recipe.method.check_handed_over()
        if constrained:
            problem = "answers are held to a form where they are written, and vLLM knows none of our constraints"
            yield Problem("stage.sampling.constraint", problem, hint="leave it or stage.sampling.server out")
        for name in ("new_tokens", "rope_scaling"):
            if getattr(recipe.model, name):
                problem = "it changes the base, and the server has that as it was"
                yield Problem(f"model.{name}", problem, hint="leave it or stage.sampling.server out")
        if not self.folder.is_dir():
            problem = f"{self.folder} is no folder; adapters are handed over there"
            yield Problem("stage.sampling.server.adapters", problem, hint="make it, and let the server read it")

    @property
    def folder(self) -> Path:
        """Where adapters are written."""
        return Path(self.adapters).expanduser().absolute()

    def path_there(self, name: str) -> str:
        """Return what the server calls the adapter *name* in the folder."""
        return str(self.folder / name) if self.adapters_there is None else f"{self.adapters_there.rstrip('/')}/{name}"
