"""JSON and JSON-lines files, with the line on which each record begins."""

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tunesmith.core.errors import DataError
from tunesmith.data.conversation import BadRow, Origin, Record
from tunesmith.data.describe import describe, names
from tunesmith.data.sources.text import open_text

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_FIRST_BLOCK, _BLOCK = 1 << 16, 1 << 20


def read_json_lines(path: Path) -> Iterator[Record | BadRow]:
    """Yield the object on each line; a broken line is a bad row, a blank line none."""
    name, begun = str(path), False
    with open_text(path) as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            if not begun and line.lstrip().startswith("["):  # a JSON list under the wrong name
                yield from read_json(path)
                return
            begun = True
            origin = Origin(name, number)
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                yield BadRow(origin, f"not JSON at column {error.colno}: {error.msg}")
            except ValueError as error:
                yield BadRow(origin, f"not JSON: {error}")
            else:
                yield _row(value, origin)


def read_json(path: Path) -> Iterator[Record | BadRow]:
    """Yield the objects of a list, or of the list called ``data`` in an object.

    A file of several objects is read as JSON lines.  Raises :class:`DataError` where the JSON is broken.
    """
    with open_text(path) as handle:
        stream = _Stream(handle, path)
        match stream.peek():
            case "":
                return
            case "[":
                yield from _read_list(stream)
                if stream.peek():
                    stream.fail("found more after the end of the list")
                return
            case "{":
                keys, found = yield from _read_object(stream)
                more = stream.peek()
                if found and more:
                    stream.fail("found more after the end of the object")
                if not found and not more:
                    raise DataError(_explain_object(path, keys))
                if found:
                    return
            case _:
                raise DataError(f"{path}: found {describe(stream.value())}; must be a list of objects")
    yield from read_json_lines(path)


def _row(value: Any, origin: Origin) -> Record | BadRow:
    if isinstance(value, dict):
        return Record(value, origin)
    return BadRow(origin, f"found {describe(value)}; each row must be an object")


def _explain_object(path: Path, keys: list[str]) -> str:
    return (
        f"{path}: holds one object, with {names(keys) or 'no keys'}; must be a list of objects"
        "\n    hint: put the rows in a list, or name the list 'data', or write one object per line (.jsonl)"
    )


class _Stream:
    """Decodes one JSON value after another from a text, reading it in blocks and counting lines."""

    def __init__(self, handle: TextIO, path: Path) -> None:
        self._handle, self.path = handle, path
        self._text = handle.read(_FIRST_BLOCK)
        self._at = 0
        self._line, self._counted = 1, 0  # the line number at index ``counted`` of the text
        self._column = 0  # characters of the text's first line that were let go with earlier blocks

    def line(self) -> int:
        """Return the line number of the current position."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def peek(self) -> str:
        """Return the next character that is not white space, or nothing at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches always
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def skip(self, characters: str) -> str:
        """Move past the next character, one of *characters*, and return it."""
        found = self.peek()
        if not found:
            self.fail(f"the file ends early; expected {' or '.join(characters)}")
        if found not in characters:
            self.fail(f"found {found}; expected {' or '.join(characters)}")
        self._at += 1
        return found

    def value(self) -> Any:
        """Return the next value and move past it."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError as error:
                if not self._read_more():  # else it may only have been cut by the end of the block
                    if isinstance(error, json.JSONDecodeError):
                        self.fail(error.msg, error.pos)
                    self.fail(str(error))
            else:
                if end < len(self._text) or not self._read_more():  # a number may go on in the next block
                    self._at = end
                    return value

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        """Raise the error for what stands at *position*, or at the current one."""
        self._at = self._at if position is None else position
        start = self._text.rfind("\n", 0, self._at) + 1
        column = self._at - start + 1 + (self._column if start == 0 else 0)
        raise DataError(f"{self.path}:{self.line()}: not JSON at column {column}: {message}")

    def _read_more(self) -> bool:
        # As much again as is held, so that a value of many blocks is not decoded anew for each of them.
        block = self._handle.read(max(_BLOCK, len(self._text) - self._at))
        if block:
            self.line()
            start = self._text.rfind("\n", 0, self._at) + 1
            self._column = self._at - start + (self._column if start == 0 else 0)
            self._text = self._text[self._at :] + block
            self._at = self._counted = 0
        return bool(block)


def _read_list(stream: _Stream) -> Iterator[Record | BadRow]:
    stream.skip("[")
    if stream.peek() == "]":
        stream.skip("]")
        return
    while True:
        if stream.peek() == "]":
            stream.fail("a comma before the closing bracket; remove it")
        origin = Origin(str(stream.path), stream.line())
        yield _row(stream.value(), origin)
        if stream.skip(",]") == "]":
            return


def _read_object(stream: _Stream) -> Generator[Record | BadRow, None, tuple[list[str], bool]]:
    """Yield the rows of the list called ``data``; return the object's keys and whether there was such a list."""
    keys: list[str] = []
    found = False
    stream.skip("{")
    if stream.peek() == "}":
        stream.skip("}")
        return keys, found
    while True:
        if stream.peek() != '"':
            stream.fail("expected a key in double quotes")
        keys.append(stream.value())
        stream.skip(":")
        if keys[-1] == "data" and stream.peek() == "[":
            found = True
            yield from _read_list(stream)
        else:
            stream.value()
        if stream.skip(",}") == "}":
            return keys, found
