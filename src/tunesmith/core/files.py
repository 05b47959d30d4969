"""Files that are either whole or not there, and hashes of what was read."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what keeps *path* from being written (no rights, no room) into a :class:`UserError` that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write *text* to *path* so that a reader sees the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write *value* as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file that we wrote; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def check_new_folder(path: Path) -> None:
    """Raise :class:`UserError` where *path* cannot become a new folder, before the work that would fill it."""
    if path.is_file():
        raise UserError(f"{path} is a file; name a new folder")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path} is not empty; name a new folder")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"cannot write {path}: {above} is a file")
    if not os.access(above, os.W_OK):
        raise UserError(f"cannot write {path}: {above} is not ours to write in")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; on success it becomes *path* in one rename, on failure it is removed."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(path):
        partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for file in partial.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | 0o044)  # some libraries write files that only their owner can read
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
