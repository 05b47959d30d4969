"""Verses in files: plain text, JSON, JSON lines, or a folder of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.prosody.errors import ProsodyError

# where the records of usual collections keep the verse
FIELDS = ("text", "lines", "paragraphs", "paras", "poem", "content", "output")
_KINDS = (".txt", ".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class Verse:
    """One verse and where it came from."""

    where: str
    """File, and line or number of the record."""
    text: str


def read_verses(path: Path, field: str | None = None) -> Iterator[Verse]:
    """Yield the verses of a file or folder; raise :class:`ProsodyError` for a record that holds none.

    In a text file verses are parted by empty lines.  *field* names where a record keeps the verse (text, or a list of
    lines); left out, the first of the usual names is taken.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _KINDS)
        if not files:
            raise ProsodyError(f"{path} has no file that ends in {', '.join(_KINDS)}")
        for file in files:
            yield from read_verses(file, field)
        return
    text = _read(path)
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield _verse(_parse(line, f"{path}:{number}"), f"{path}:{number}", field)
    elif path.suffix == ".json":
        records = _parse(text, str(path))
        for number, record in enumerate(records if isinstance(records, list) else [records], start=1):
            yield _verse(record, f"{path}[{number}]", field)
    else:
        blocks = "\n".join(line.strip() for line in text.splitlines()).split("\n\n")
        for number, block in enumerate(filter(str.strip, blocks), start=1):
            yield Verse(f"{path}[{number}]", block.strip())


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProsodyError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ProsodyError(f"cannot read {path}: {error.strerror}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ProsodyError(f"{where}: not JSON: {error.msg} at character {error.pos + 1}") from error


def _verse(record: Any, where: str, field: str | None) -> Verse:
    if isinstance(record, str):
        return Verse(where, record)
    if not isinstance(record, dict):
        raise ProsodyError(f"{where}: a record is text or an object, found {type(record).__name__}")
    name = field or next((name for name in FIELDS if name in record), None)
    value = record.get(name) if name is not None else None
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return Verse(where, "\n".join(value))
    if not isinstance(value, str):
        tried = f"field {field!r}" if field else f"any of {', '.join(FIELDS)}"
        raise ProsodyError(f"{where}: no verse in {tried}; it has {', '.join(record)}")
    return Verse(where, value)
