"""Find the format of records from the columns they have."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.data.describe import names
from tunesmith.data.formats import FORMATS, Format

_MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def detect_format(rows: Sequence[Mapping[str, Any]]) -> tuple[Format, str]:
    """Return the one format that some of *rows* match, and why; raise :class:`DataError` for none or several."""
    found = {column: None for values in rows for column in values}
    if media := [column for column in found if column in _MEDIA and any(values.get(column) for values in rows)]:
        raise DataError(
            f"found columns {names(media)}: this version reads text only\n    hint: to learn the text alone, set format"
        )
    formats = [FORMATS.get(name) for name in FORMATS.names()]
    matching = [format_ for format_ in formats if any(format_.matches(values) for values in rows)]
    if len(matching) == 1:
        (format_,) = matching
        return format_(), f"detected from columns {names(column for column in found if column in format_.columns)}"
    if matching:
        choices = " or ".join(format_.type_name() for format_ in matching)
        raise DataError(f"found columns {names(found)}, which more than one format reads; set format: {choices}")
    wanted = "".join(f"\n    {format_.type_name()} wants {format_.wants()}" for format_ in formats)
    raise DataError(f"found columns {names(found)}, which no format reads{wanted}\n    hint: {_advise(rows)}")


def _advise(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the mapping that would most likely do."""
    for values in rows:
        ends = {word: column for word in ("chosen", "rejected") for column in values if word in column.lower()}
        if len(ends) == 2:
            asked = next((column for column in values if column not in ends.values()), "…")
            return f"set columns: {{prompt: {asked}, chosen: {ends['chosen']}, rejected: {ends['rejected']}}}"
        for column, value in values.items():
            turn = value[0] if isinstance(value, list) and value else None
            if isinstance(turn, dict) and "role" in turn:
                return f"set columns: {{messages: {column}}}"
            if isinstance(turn, dict) and "from" in turn:
                return f"set columns: {{conversations: {column}}}"
    columns = list(rows[0]) if rows else []
    if len(columns) > 1:
        return f"say which column is which, such as columns: {{prompt: {columns[0]}, completion: {columns[1]}}}"
    return f"to learn it as plain text, set columns: {{text: {columns[0] if columns else '…'}}}"
