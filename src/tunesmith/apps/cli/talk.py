"""``tunesmith chat``: one question, or a dialogue in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.generation.presets import PRESET_NOTES, PRESETS
from tunesmith.run.chat import Talk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tunesmith.generation.settings import Generation

# what is written after the command, and what it does
_COMMANDS = {
    "/help": ("", "show this"),
    "/new": ("", "begin a new dialogue"),
    "/again": ("", "answer the last question anew"),
    "/edit": ("QUESTION", "ask this in the place of the last question"),
    "/system": ("TEXT", "set the system prompt; alone, take it away"),
    "/adapter": ("NAME", "let another adapter answer; alone, say which there are"),
    "/preset": ("NAME", "sample as for a kind of text; alone, say which there are"),
    "/set": ("NAME=VALUE", "change one setting of the sampling; alone, show what was set"),
    "/history": ("", "show what was said"),
    "/save": ("FILE.jsonl", "append the dialogue to a file that can be trained on"),
    "/quit": ("", "end"),
}
_BLOCK = '"""'
# what an answer follows; the empty command is a question
_ANSWERED: dict[str, Callable[[Talk, str], Iterator[str]]] = {
    "": lambda conversation, rest: conversation.ask(rest),
    "/again": lambda conversation, _: conversation.again(),
    "/edit": lambda conversation, rest: conversation.edit(rest),
}


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
        print("Ask away.  /help shows what else there is.")
        if adapters:
            print(_shown(conversation, "/adapter"))
    while (text := _read(asking=asking)) is not None:
        word, _, rest = text.partition(" ")
        if word == "/quit":
            return
        if text.startswith("/") and word not in _COMMANDS:
            *names, last = _COMMANDS
            print(f"no such command: {word}{suggest(word, _COMMANDS)}; there are {', '.join(names)} and {last}")
        elif text.startswith("/"):
            _obey(conversation, word, rest.strip(), asking=asking)
        elif text:
            _obey(conversation, "", text, asking=asking)


def _obey(conversation: Talk, word: str, rest: str, *, asking: bool) -> None:
    """Do what a command, or a question (no *word*), says; print what is wrong with it."""
    try:
        if word in _ANSWERED:
            _answer(conversation, _ANSWERED[word](conversation, rest), asking=asking)
        elif word in ("/help", "/history") or (not rest and word in ("/preset", "/set", "/adapter")):
            print(_shown(conversation, word))
        else:
            _settle(conversation, word, rest)
    except UserError as error:
        if not word and not asking:
            raise
        print(error)


def _settle(conversation: Talk, word: str, rest: str) -> None:
    """Do what a command says that nothing is written after; raise :class:`UserError` where it cannot be done."""
    if word == "/new":
        conversation.forget()
    elif word == "/system":
        conversation.system = rest or None
    elif word == "/adapter":
        conversation.switch(None if rest == "none" else rest)
    elif word == "/preset":
        conversation.use(rest)
    elif word == "/set":
        conversation.change(rest)
    elif not rest:
        raise UserError("which file? /save FILE.jsonl appends the dialogue to it")
    else:
        conversation.save(Path(rest).expanduser())
        print(f"saved in {rest}")


def _shown(conversation: Talk, word: str) -> str:
    """Return what a command shows."""
    if word == "/adapter":
        return f"{conversation.active or 'none'} answers; there are {', '.join([*conversation.adapters, 'none'])}"
    if word == "/set":
        return _written(conversation.generation.model_dump(exclude_unset=True)) or "nothing was set"
    if word == "/preset":
        return "\n".join(f"{name:<10}{note}: {_written(PRESETS[name])}" for name, note in PRESET_NOTES.items())
    if word == "/history":
        lines = [f"{'> ' if each.role == 'user' else ''}{each.content}" for each in conversation.said]
        return "\n".join(lines) or "nothing was said yet"
    lines = [f"{command} {after}".ljust(20) + says for command, (after, says) in _COMMANDS.items()]
    return "\n".join([*lines, f"A line that ends with \\ goes on in the next; {_BLOCK} begins and ends several lines."])


def _written(values: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _answer(conversation: Talk, pieces: Iterable[str], *, asking: bool) -> None:
    """Write an answer, and in a terminal how fast it came; Ctrl-C ends the answer and not the dialogue."""
    try:
        _write(pieces)
    except KeyboardInterrupt:
        if not asking:
            raise
        print("\n[stopped; not kept]")
        return
    if asking and conversation.speed is not None:
        print(f"[{conversation.speed}]")


def _read(*, asking: bool) -> str | None:
    """Return the next question; None where input has ended."""
    lines: list[str] = []
    block = False
    try:
        while True:
            line = _readable(input("> " if asking and not lines else ""))
            if line.strip() == _BLOCK:
                if block:
                    return "\n".join(lines).strip()
                block = True
                continue
            lines.append(line if block else line.removesuffix("\\"))
            if not block and not line.endswith("\\"):
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
