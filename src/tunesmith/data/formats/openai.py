"""A list of ``messages`` with role and content, as OpenAI, transformers and TRL write it."""

from tunesmith.data.conversation import Conversation, Record
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._endings import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    assemble_pair,
    has_pair,
    read_endings,
    with_label,
)
from tunesmith.data.formats._turns import SHARED_COLUMNS, assemble, read_column, read_messages


class OpenAI(Format):
    """Read roles, tool calls and reasoning; a turn's ``train`` and ``weight`` say whether and how much it is learnt."""

    columns = {
        "messages": "list of messages: role, content, and where needed tool_calls, reasoning_content, train, weight",
        **SHARED_COLUMNS,
        **PAIR_COLUMNS,
        **LABEL_COLUMNS,
    }
    required = frozenset({"messages"})

    def read(self, record: Record) -> Conversation:
        messages = read_messages(read_column(record.values, "messages"), "messages")
        if has_pair(record.values):
            return assemble_pair(record, messages, *read_endings(record.values))
        return with_label(assemble(record, messages, "messages"), record.values)
