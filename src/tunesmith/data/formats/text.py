"""Plain ``text`` to continue, for pre-training."""

from tunesmith.data.conversation import Conversation, Record
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._turns import read_column, read_filled_text


class Text(Format):
    """Learn every token of the text; there are no turns."""

    columns = {"text": "the text"}
    required = frozenset({"text"})

    def read(self, record: Record) -> Conversation:
        return Conversation(text=read_filled_text(read_column(record.values, "text"), "text"), origin=record.origin)
