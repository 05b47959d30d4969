"""Read sources into conversations, keeping account of every row."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from tunesmith.core.errors import DataError, Problem, RecipeError
from tunesmith.data.conversation import BadRow, Conversation
from tunesmith.data.formats import Format
from tunesmith.data.source import Part, SettledSource, Source, settle_source

_SHOWN = 10  # bad rows that an error lists


@dataclass(frozen=True)
class FileRead:
    """What was read of one file (or Hub data set): rows, how many of them were bad, and the SHA-256 of the file."""

    file: str
    rows: int
    bad: int
    sha256: str


@dataclass(frozen=True)
class SourceRead:
    """What was read of one source, in which format and why; ``left_out`` are files of a folder that hold no data."""

    source: Source
    format: Format
    why: str
    files: tuple[FileRead, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class DataRead:
    """The conversations of all sources, in order, and the account: ``rows == len(conversations) + len(bad)``.

    ``duplicates`` counts conversations that are equal to an earlier one; they are kept.
    """

    conversations: list[Conversation]
    rows: int
    bad: list[BadRow]
    duplicates: int
    sources: tuple[SourceRead, ...]


def read_sources(sources: Sequence[Source], *, bad_rows: Literal["refuse", "skip"], at: str = "data") -> DataRead:
    """Return every conversation in *sources*; *at* is where the recipe lists them.

    Raises :class:`RecipeError` for a source that cannot be read at all, and :class:`DataError` for a broken file, for
    bad rows unless they are to be skipped, and if no conversation is left.
    """
    settled = _settle(sources, at)
    conversations: list[Conversation] = []
    bad: list[BadRow] = []
    reads = tuple(
        _read_source(asked, source, conversations, bad) for asked, source in zip(sources, settled, strict=True)
    )
    rows = len(conversations) + len(bad)
    if bad and (bad_rows == "refuse" or not conversations):
        raise DataError(_explain_bad_rows(bad, rows, skipped=bad_rows == "skip"))
    if not conversations:
        raise DataError(f"{at}: there is nothing to read")
    duplicates = len(conversations) - len({_identity(conversation) for conversation in conversations})
    return DataRead(conversations, rows, bad, duplicates, reads)


def count_shared(held_out: Sequence[Conversation], train: Sequence[Conversation]) -> int:
    """Return how many of the conversations *held_out* stand in *train* too."""
    known = {_identity(conversation) for conversation in train}
    return sum(_identity(conversation) in known for conversation in held_out)


def _settle(sources: Sequence[Source], at: str) -> list[SettledSource]:
    settled: list[SettledSource] = []
    problems: list[Problem] = []
    for index, source in enumerate(sources):
        try:
            found = settle_source(source, f"{at}.{index}")
        except RecipeError as error:
            problems += error.problems
        else:
            assert found is not None  # the Hub was asked
            settled.append(found)
    if problems:
        raise RecipeError(problems)
    return settled


def _read_source(
    asked: Source, settled: SettledSource, conversations: list[Conversation], bad: list[BadRow]
) -> SourceRead:
    """Append what *settled* holds to *conversations* and *bad*, and return the account of it."""
    files: list[FileRead] = []
    left = settled.source.take
    for part in settled.parts:
        if left == 0:
            break
        read = _read_part(part, settled, left, conversations, bad)
        left = None if left is None else left - read.rows
        files.append(read)
    return SourceRead(asked, settled.format, settled.why, tuple(files), settled.left_out)


def _read_part(
    part: Part, settled: SettledSource, limit: int | None, conversations: list[Conversation], bad: list[BadRow]
) -> FileRead:
    good_before, bad_before = len(conversations), len(bad)
    for row in islice(part.rows(), limit):
        result = settled.read(row)
        if isinstance(result, BadRow):
            bad.append(result)
        else:
            conversations.append(result)
    bad_here = len(bad) - bad_before
    rows = len(conversations) - good_before + bad_here
    if not rows:
        raise DataError(f"{part.name}: is empty")
    return FileRead(part.name, rows, bad_here, part.hash())


def _explain_bad_rows(bad: Sequence[BadRow], rows: int, *, skipped: bool) -> str:
    shown = "".join(f"\n    {row}" for row in bad[:_SHOWN])
    more = f"\n    … and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    hint = "" if skipped else "\n    hint: correct them, or set data.bad_rows: skip to leave them out and count them"
    return f"{len(bad)} of {rows} rows cannot be read:{shown}{more}{hint}"


def _identity(conversation: Conversation) -> int:
    """Return a number that equal conversations share, wherever they were read."""
    turns = tuple(
        (m.role, m.content, m.reasoning, repr(m.tool_calls), m.trained, m.name, m.tool_call_id, m.weight, m.parts)
        for m in (*conversation.messages, *conversation.rejected)
    )
    judged = (conversation.shared, conversation.label, conversation.label_weight)
    return hash((turns, judged, conversation.text, repr(conversation.tools)))
