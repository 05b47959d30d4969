"""A ``text`` and its ``label``, a class or a number, for classification and regression."""

import math

from tunesmith.data.conversation import Conversation, Record, RowError
from tunesmith.data.describe import describe
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._turns import read_column, read_filled_text, read_messages


class Labelled(Format):
    """Read a text, or a dialogue, with what belongs to the whole of it."""

    columns = {
        "text": "the text, or a list of messages",
        "label": "its class, by name or number, or the number that is to be learnt",
    }
    required = frozenset({"text", "label"})

    def read(self, record: Record) -> Conversation:
        text, label = read_column(record.values, "text"), read_column(record.values, "label")
        if isinstance(label, bool):
            label = str(label).lower()
        elif not isinstance(label, str | int | float) or (isinstance(label, float) and not math.isfinite(label)):
            raise RowError("label", f"found {describe(label)}; must be a text or a number")
        rating = label if isinstance(label, str) else float(label)
        if isinstance(text, list):
            return Conversation(tuple(read_messages(text, "text")), rating=rating, origin=record.origin)
        return Conversation(text=read_filled_text(text, "text"), rating=rating, origin=record.origin)
