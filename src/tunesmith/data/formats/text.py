"""Plain ``text`` to continue, for pre-training."""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.conversation import Conversation, Record
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._turns import read_column, read_filled_text, read_text


class Text(Format):
    """Learn every token of the text; there are no turns."""

    columns = {"text": "the text, or a list of its lines"}
    required = frozenset({"text"})

    @classmethod
    def matches(cls, values: Mapping[str, Any]) -> bool:
        return super().matches(values) and "label" not in values  # such rows are of the format labelled

    def read(self, record: Record) -> Conversation:
        value = read_column(record.values, "text")
        if isinstance(value, list) and value:
            value = "\n".join(read_text(line, f"text[{index}]") for index, line in enumerate(value))
        return Conversation(text=read_filled_text(value, "text"), origin=record.origin)
