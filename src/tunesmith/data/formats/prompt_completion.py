"""A ``prompt`` and its ``completion``, each a text or a list of messages."""

from dataclasses import replace

from tunesmith.data.conversation import Conversation, Message, Record, RowError
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._endings import LABEL_COLUMNS, with_label
from tunesmith.data.formats._turns import (
    SHARED_COLUMNS,
    assemble,
    read_column,
    read_filled_text,
    read_messages,
)


class PromptCompletion(Format):
    """Learn the completion only; answers inside a prompt of messages are context."""

    columns = {
        "prompt": "the question: text, or a list of messages",
        "completion": "the answer: text, or a list of messages",
        **SHARED_COLUMNS,
        **LABEL_COLUMNS,
    }
    required = frozenset({"prompt", "completion"})

    def read(self, record: Record) -> Conversation:
        prompt = read_column(record.values, "prompt")
        completion = read_column(record.values, "completion")
        if isinstance(prompt, list):
            asked = [_as_context(message) for message in read_messages(prompt, "prompt")]
        else:
            asked = [Message("user", read_filled_text(prompt, "prompt"))]
        if isinstance(completion, list):
            answered = read_messages(completion, "completion")
        else:
            answered = [Message("assistant", read_filled_text(completion, "completion"))]
        for index, message in enumerate(answered):
            if message.role not in ("assistant", "tool"):
                raise RowError(f"completion[{index}]", f"is a {message.role} message; it belongs in the prompt")
        return with_label(assemble(record, [*asked, *answered], "completion"), record.values)


def _as_context(message: Message) -> Message:
    return replace(message, trained=False) if message.role == "assistant" else message
