"""``tunesmith chat``: one question, or a dialogue in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.run.chat import Talk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tunesmith.generation.settings import Generation


def talk(
    model: str,
    prompt: str | None,
    system: str | None,
    generation: Generation,
    device: str,
    adapters: Sequence[str] = (),
) -> None:
    """Answer *prompt*, or each line of standard input until it ends."""
    conversation = Talk.load(model, system, generation, device, adapters)
    if prompt is not None:
        _write(conversation.ask(_readable(prompt).replace("\\n", "\n")))
        return
    asking = sys.stdin.isatty()
    if asking:
        print("Ask away.  /new begins again, /quit ends.  End a line with \\ to go on with it in the next.")
        if adapters:
            print("/adapter NAME lets another adapter answer.", end="  ")
            _switch(conversation, "")
    while (text := _read(asking=asking)) is not None:
        if text == "/quit":
            return
        if text == "/new":
            conversation.forget()
        elif text.split()[:1] == ["/adapter"]:
            _switch(conversation, text.removeprefix("/adapter").strip())
        elif text.startswith("/"):
            print(f"no such command: {text}; there are /new, /adapter and /quit")
        elif text:
            _write(conversation.ask(text))


def _switch(conversation: Talk, name: str) -> None:
    """Let another adapter answer; without a name, say which there are."""
    if not name:
        print(f"{conversation.active or 'none'} answers; there are {', '.join([*conversation.adapters, 'none'])}")
        return
    try:
        conversation.switch(None if name == "none" else name)
    except UserError as error:
        print(error)


def _read(*, asking: bool) -> str | None:
    """Return the next question; None where input has ended."""
    lines: list[str] = []
    try:
        while True:
            line = _readable(input("> " if asking and not lines else ""))
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines).strip()
    except EOFError:
        return "\n".join(lines).strip() if lines else None


def _readable(text: str) -> str:
    """Return *text* with a replacement character for each byte that was not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _write(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
