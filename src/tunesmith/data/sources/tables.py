"""Tables: CSV, TSV and Parquet files."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.data.conversation import BadRow, Origin, Record
from tunesmith.data.describe import names
from tunesmith.data.sources.text import open_text

_LONGEST_CELL = 1 << 30  # characters; the csv module's own limit of 131,072 is shorter than many documents


def read_csv(path: Path) -> Iterator[Record | BadRow]:
    """Yield the rows under the header of a comma-separated file."""
    return _read_cells(path, ",")


def read_tsv(path: Path) -> Iterator[Record | BadRow]:
    """Yield the rows under the header of a tab-separated file."""
    return _read_cells(path, "\t")


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file; their line is the row's number."""
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    row += 1
                    yield Record({key: without_nulls(value) for key, value in values.items()}, Origin(str(path), row))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error


def without_nulls(value: Any) -> Any:
    """Return *value* without the null fields of its objects.

    Arrow gives every object of a column the fields of all of them, so that a null there means "has no such field".
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _read_cells(path: Path, delimiter: str) -> Iterator[Record | BadRow]:
    csv.field_size_limit(_LONGEST_CELL)
    header: list[str] = []
    with open_text(path) as handle:
        rows = csv.reader(handle, delimiter=delimiter, strict=True)
        while True:
            line = rows.line_num + 1  # a quoted cell may hold line breaks: this is where the row begins
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise DataError(f"{path}:{line}: the row that begins here cannot be read: {error}") from error
            if cells is None:
                return
            if not cells:  # a blank line
                continue
            origin = Origin(str(path), line)
            if not header:
                header = _check_header([cell.strip() for cell in cells], delimiter, origin)
            elif len(cells) == len(header):
                yield Record(dict(zip(header, cells, strict=True)), origin)
            else:
                yield BadRow(origin, f"found {len(cells)} cells; the header has {len(header)}: {names(header)}")


def _check_header(cells: list[str], delimiter: str, origin: Origin) -> list[str]:
    repeated = [cell for cell in dict.fromkeys(cells) if cells.count(cell) > 1]
    if repeated:
        raise DataError(f"{origin}: the header names these columns twice: {names(map(repr, repeated))}")
    for other, name in {",": "commas", ";": "semicolons", "\t": "tabs"}.items():
        if len(cells) == 1 and other != delimiter and other in cells[0]:
            kind = "tabs" if delimiter == "\t" else "commas"
            raise DataError(
                f"{origin}: the header is one column, {cells[0]!r}; it seems to be separated by {name}, not {kind}"
                "\n    hint: a .csv file is separated by commas, a .tsv file by tabs"
            )
    return cells
