"""Text files: opened the same way everywhere, and an encoding that is not UTF-8 explained."""

import gzip
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from tunesmith.core.errors import DataError
from tunesmith.data.conversation import Origin, Record


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open UTF-8 text (with or without byte-order mark, or gzip'd); only a line feed ends a line, and it is kept.

    Raises :class:`DataError`, also while the file is read.
    """
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as handle:
            yield cast("TextIO", handle)
    except UnicodeDecodeError as error:
        raise DataError(_explain_encoding(path)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_text_lines(path: Path) -> Iterator[Record]:
    """Yield each line as a ``text``; lines of white space only are not texts."""
    with open_text(path) as handle:
        for number, line in enumerate(handle, 1):
            if text := line.strip("\r\n") if line.strip() else "":
                yield Record({"text": text}, Origin(str(path), number))


def _explain_encoding(path: Path) -> str:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as handle:
        data = handle.read()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{path}:{line}: byte {error.start + 1} of the file (0x{data[error.start]:02X}) is not UTF-8"
    else:
        return f"{path}: changed while it was read"
    encoding = _guess_encoding(data)
    if not encoding:
        return f"{message}; files must be UTF-8"
    source, target = shlex.quote(str(path)), shlex.quote(str(path.with_name(f"utf8_{path.name}")))
    command = f"iconv -f {encoding} -t UTF-8 {source} > {target}"
    return f"{message}; the file looks like {encoding}\n    hint: convert it: {command}"


def _guess_encoding(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return ""
    return "GB18030"
