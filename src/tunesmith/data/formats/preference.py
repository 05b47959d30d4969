"""Two answers to one ``prompt``, ``chosen`` and ``rejected``, as TRL and most preference data write them."""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.conversation import Conversation, Message, Record, RowError
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._endings import MARGIN_COLUMN, PAIR_COLUMNS, are_whole, assemble_pair, read_endings
from tunesmith.data.formats._turns import SHARED_COLUMNS, read_column, read_filled_text, read_messages

_OTHERS = ("instruction", "conversations", "messages")  # columns of formats that read pairs in their own way


class Preference(Format):
    """Read pairs; without a prompt, chosen and rejected are whole dialogues, and the prompt is what both begin with."""

    columns = {
        "prompt": "the question: text, or a list of messages; left out where chosen and rejected are whole dialogues",
        **PAIR_COLUMNS,
        **MARGIN_COLUMN,
        **SHARED_COLUMNS,
    }
    required = frozenset(PAIR_COLUMNS)

    @classmethod
    def matches(cls, values: Mapping[str, Any]) -> bool:
        return super().matches(values) and not any(column in values for column in _OTHERS)

    def read(self, record: Record) -> Conversation:
        values = record.values
        for column in PAIR_COLUMNS:
            read_column(values, column)
        chosen, rejected = read_endings(values)
        prompt, asked = values.get("prompt"), []
        if isinstance(prompt, list):
            asked = read_messages(prompt, "prompt")
        elif prompt is not None:
            asked = [Message("user", read_filled_text(prompt, "prompt"))]
        elif not are_whole(chosen, rejected):
            raise RowError("prompt", "is missing; without it, chosen and rejected must be whole lists of messages")
        return assemble_pair(record, asked, chosen, rejected)
