"""A list of ``messages`` with role and content, as OpenAI, transformers and TRL write it."""

from tunesmith.data.conversation import Conversation, Record
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._turns import SHARED_COLUMNS, assemble, read_column, read_messages


class OpenAI(Format):
    """Read roles, tool calls and reasoning; a turn's ``train`` and ``weight`` say whether and how much it is learnt."""

    columns = {
        "messages": "list of messages: role, content, and where needed tool_calls, reasoning_content, train, weight",
        **SHARED_COLUMNS,
    }
    required = frozenset({"messages"})

    def read(self, record: Record) -> Conversation:
        messages = read_messages(read_column(record.values, "messages"), "messages")
        return assemble(record, messages, "messages")
