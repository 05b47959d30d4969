"""A source: where rows are read from and how, as a recipe says it, and what that settles to."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from tunesmith.core.errors import DataError, Problem, RecipeError
from tunesmith.core.files import hash_file
from tunesmith.core.registry import Block, suggest
from tunesmith.data.conversation import BadRow, Conversation, Record, RowError
from tunesmith.data.dataset_info import list_datasets, read_dataset
from tunesmith.data.describe import names
from tunesmith.data.formats import FORMATS, Format
from tunesmith.data.formats._detect import detect_format
from tunesmith.data.sources.files import DATASET_INFO, READERS, find_files, read_file
from tunesmith.data.sources.hub import is_hub_name, load_hub_data

_HEAD = 100  # rows at the beginning of a source from which its format and columns are settled
_SHOWN = 5  # rows shown where none of those can be read


class Source(Block):
    """Rows to read: a path is enough where columns are named as usual."""

    short_for: ClassVar[str] = "path"

    path: Annotated[str, Field(min_length=1)]
    """File (.jsonl, .json, .csv, .tsv, .txt, .parquet), folder of such files, or a data set of the Hub (owner/name)."""

    format: Annotated[SerializeAsAny[Format], FORMATS] | Literal["auto"] = "auto"
    """How a row becomes a conversation; ``auto`` finds it from the columns."""

    columns: dict[str, str | None] = {}
    """The format's column -> the file's column, such as ``{prompt: question}``; null leaves a column out."""

    dataset: str | None = None
    """Name inside LLaMA-Factory's ``dataset_info.json``, when the path is that file or its folder."""

    split: str = "train"
    """Part of a Hub data set, such as ``train`` or ``test``."""

    subset: str | None = None
    """Configuration of a Hub data set that has several."""

    folder: str | None = None
    """Folder of a Hub data set to read, when not all of it."""

    take: Annotated[int, Field(ge=1)] | None = None
    """Read only so many rows, from the beginning."""

    @model_validator(mode="after")
    def _dataset_says_the_rest(self) -> Self:
        usual: dict[str, object] = {"format": "auto", "columns": {}, "split": "train", "subset": None, "folder": None}
        said = [name for name, value in self if name in usual and value != usual[name]]
        if self.dataset and said:
            raise ValueError(f"dataset_info.json says {names(said)} for dataset {self.dataset!r}; remove them here")
        return self


@dataclass(frozen=True)
class Part:
    """One file of a source, or a whole Hub data set."""

    name: str
    rows: Callable[[], Iterator[Record | BadRow]]
    hash: Callable[[], str]


@dataclass(frozen=True)
class SettledSource:
    """A source with every question answered: its files, its columns, its format and why."""

    source: Source
    parts: tuple[Part, ...]
    left_out: tuple[str, ...]
    format: Format
    why: str

    def read(self, row: Record | BadRow) -> Conversation | BadRow:
        """Return the conversation in a row, or why there is none."""
        return row if isinstance(row, BadRow) else _read_record(row, self.format, self.source.columns)


def check_source(source: Source, path_in_recipe: str, where: str = "") -> Iterable[Problem]:
    """Yield what is wrong with *source*, from the beginning of its first file; a Hub data set is not looked up."""
    try:
        settle_source(source, path_in_recipe, where, use_hub=False)
    except RecipeError as error:
        yield from error.problems


def settle_source(source: Source, at: str, where: str = "", *, use_hub: bool = True) -> SettledSource | None:
    """Return what *source* settles to; ``None`` for a Hub data set where *use_hub* is off.

    Raises :class:`RecipeError` with the problems found; *at* and *where* say where the recipe names the source.
    """

    def problem(key: str, error: object) -> Problem:
        # Data errors write their hint as a problem does when it is printed.
        message, _, hint = str(error).partition("\n    hint: ")
        return Problem(f"{at}.{key}" if at else key, message, where, hint)

    try:
        described, why = _follow_dataset(source)
    except DataError as error:
        raise RecipeError([problem("dataset", error)]) from error
    problems = [problem(key, message) for key, message in _check_settings(described)]
    try:
        parts, left_out = _find_parts(described, use_hub)
        head = _read_head(parts)
    except DataError as error:
        raise RecipeError([*problems, problem("path", error)]) from error
    told = {found.path for found in problems}
    missing = [problem(key, message) for key, message in _check_columns(described, head)]
    problems += [found for found in missing if found.path not in told]
    if problems:
        raise RecipeError(problems)
    if not parts:
        return None
    try:
        format_, why = _choose_format(described, head, why)
    except DataError as error:
        raise RecipeError([problem("format", error)]) from error
    return SettledSource(described, tuple(parts), tuple(left_out), format_, why)


def _follow_dataset(source: Source) -> tuple[Source, str]:
    """Return the source that ``dataset_info.json`` describes, if one is named, and who says how to read it."""
    path = Path(source.path).expanduser()
    info = path / DATASET_INFO if path.is_dir() else path
    if source.dataset is None:
        datasets = list_datasets(info) if info.name == DATASET_INFO and info.is_file() else []
        if datasets:
            raise DataError(
                f"{info} describes data sets; set dataset to one of them, or path to a file: {names(datasets)}"
            )
        return source, "set in the recipe"
    if not info.is_file():
        raise DataError(f"needs LLaMA-Factory's dataset_info.json, or the folder it is in, as path; found no {info}")
    settings = read_dataset(info, source.dataset)
    why = f"set in {info}"
    if source.take is not None:
        settings["take"] = source.take
    elif "take" in settings:
        why += f"; its num_samples takes the first {settings['take']} rows (LLaMA-Factory draws them at random)"
    return Source.model_validate(settings), why


def _is_local(source: Source) -> bool:
    return Path(source.path).expanduser().exists() or not is_hub_name(source.path, frozenset(READERS))


def _check_settings(source: Source) -> Iterator[tuple[str, str]]:
    """Yield settings that cannot be, and why, without reading anything."""
    if _is_local(source):
        for key, value in {"split": source.split != "train", "subset": source.subset, "folder": source.folder}.items():
            if value:
                yield key, f"is for Hub data sets; {source.path} is a local path"
    formats = [FORMATS.get(name) for name in FORMATS.names()] if source.format == "auto" else [type(source.format)]
    known = list(dict.fromkeys(column for format_ in formats for column in format_.columns))
    for column in source.columns:
        if column not in known:
            order = "; it is written {our column: the file's column}" if source.columns[column] in known else ""
            yield f"columns.{column}", f"no such column{suggest(column, known)}; have {names(known)}{order}"


def _find_parts(source: Source, use_hub: bool) -> tuple[list[Part], list[str]]:
    if _is_local(source):
        files, others = find_files(Path(source.path).expanduser())
        parts = [Part(str(file), partial(read_file, file), partial(hash_file, file)) for file in files]
        return parts, [str(file) for file in others]
    if not use_hub:
        return [], []
    data = load_hub_data(source.path, source.subset, source.split, source.folder, source.take)
    return [Part(data.name, data.__iter__, data.hash)], []


def _read_head(parts: Sequence[Part]) -> list[Record]:
    """Return the first rows of the first part that can be read; raise :class:`DataError` if none can."""
    if not parts:
        return []
    head = list(islice(parts[0].rows(), _HEAD))
    if not head:
        raise DataError(f"{parts[0].name}: is empty")
    records = [row for row in head if isinstance(row, Record)]
    if not records:
        raise DataError(_explain_bad_head(head))
    return records


def _check_columns(source: Source, head: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Yield mapped columns that the file does not have."""
    found = list(dict.fromkeys(column for record in head for column in record.values))
    for ours, theirs in source.columns.items():
        if head and theirs is not None and theirs not in found:
            close = suggest(theirs, found)
            yield f"columns.{ours}", f"no column {theirs!r} in the first rows{close}; {source.path} has {names(found)}"


def _choose_format(source: Source, head: Sequence[Record], why: str) -> tuple[Format, str]:
    """Return the format and why; raise :class:`DataError` if it reads none of the first rows."""
    rows = [_rename(record.values, source.columns) for record in head]
    format_, why = detect_format(rows) if source.format == "auto" else (source.format, why)
    results = [_read_record(record, format_, source.columns) for record in head]
    if all(isinstance(result, BadRow) for result in results):
        raise DataError(_explain_bad_head(results))
    unused = [column for column in dict.fromkeys(chain(*rows)) if column not in format_.columns]
    return format_, why + (f"; not used: {names(unused)}" if unused else "")


def _explain_bad_head(rows: Sequence[object]) -> str:
    shown = "".join(f"\n    {row}" for row in rows[:_SHOWN])
    more = f"\n    … and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"none of the first {len(rows)} rows can be read:{shown}{more}"


def _rename(values: dict[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a row with the file's columns under our names; a column of ours that is mapped is not read otherwise."""
    if not columns:
        return values
    renamed = dict(values)
    for column in filter(None, columns.values()):
        renamed.pop(column, None)
    for ours, theirs in columns.items():
        if theirs is not None and theirs in values:
            renamed[ours] = values[theirs]
        else:
            renamed.pop(ours, None)
    return renamed


def _read_record(record: Record, format_: Format, columns: Mapping[str, str | None]) -> Conversation | BadRow:
    try:
        return format_.read(Record(_rename(record.values, columns), record.origin))
    except RowError as error:
        column = re.split(r"[\[.]", error.place, maxsplit=1)[0]
        theirs = columns.get(column)
        place = f"{theirs} (as {error.place})" if theirs else error.place
        return BadRow(record.origin, f"{place}: {error.message}")
