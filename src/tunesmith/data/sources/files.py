"""Data files on disk: which there are under a path, and how each kind is read."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tunesmith.core.errors import DataError
from tunesmith.core.registry import suggest
from tunesmith.data.conversation import BadRow, Record
from tunesmith.data.describe import names
from tunesmith.data.sources.json_files import read_json, read_json_lines
from tunesmith.data.sources.tables import read_csv, read_parquet, read_tsv
from tunesmith.data.sources.text import read_text_lines

DATASET_INFO = "dataset_info.json"

READERS: Mapping[str, Callable[[Path], Iterator[Record | BadRow]]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_text_lines,
    ".parquet": read_parquet,
}


def read_file(path: Path) -> Iterator[Record | BadRow]:
    """Yield the rows of a data file as they are read; raise :class:`DataError` where the file is broken."""
    return READERS[_kind(path)](path)


def find_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the data files that *path* stands for, in order, and the other files of the folder, which are left out.

    Hidden files and LLaMA-Factory's ``dataset_info.json`` are neither.  Raises :class:`DataError` if there is none.
    """
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file, path)]
        files = [file for file in inside if _kind(file) in READERS]
        others = [file for file in inside if _kind(file) not in READERS]
        if not files:
            found = f"; it has {names(file.name for file in others)}" if others else ""
            raise DataError(f"no data files in the folder {path}{found}; known are {names(READERS)}")
        return files, others
    if not path.exists():
        raise DataError(_explain_missing(path))
    if _kind(path) not in READERS:
        raise DataError(f"{path}: {_explain_kind(path)}")
    return [path], []


def _kind(path: Path) -> str:
    """Return the ending that says how a file is read; ``.gz`` around a text file is opened on the way."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        inner = Path(path.stem).suffix.lower()
        return inner if inner != ".parquet" else suffix
    return suffix


def _is_hidden(file: Path, folder: Path) -> bool:
    return file.name == DATASET_INFO or any(part.startswith(".") for part in file.relative_to(folder).parts)


def _explain_kind(path: Path) -> str:
    known = f"known are {names(READERS)}, and .gz around the text ones"
    if _kind(path) in (".xlsx", ".xls", ".ods"):
        return f"spreadsheets are not read; save the sheet as CSV (UTF-8); {known}"
    ending = f"files ending in {path.suffix} are not known" if path.suffix else "the file name has no ending"
    return f"{ending}; {known}"


def _explain_missing(path: Path) -> str:
    if not path.parent.is_dir():
        folder = next((parent for parent in path.parents if parent.is_dir()), Path())
        return f"no such file or folder: {path} ({folder} has no {path.relative_to(folder).parts[0]!r})"
    return f"no such file or folder: {path}{suggest(path.name, [file.name for file in path.parent.iterdir()])}"
