"""One question and its answer in a row: ``instruction``, ``input``, ``output``, with earlier turns in ``history``."""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.conversation import Conversation, Message, Record, RowError
from tunesmith.data.describe import describe
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._endings import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    assemble_pair,
    has_pair,
    read_endings,
    with_label,
)
from tunesmith.data.formats._turns import (
    SHARED_COLUMNS,
    assemble,
    read_column,
    read_filled_text,
    read_list,
    read_optional_text,
    read_text,
)


class Alpaca(Format):
    """Join instruction and input by a line break, as LLaMA-Factory does; answers in the history are learnt too."""

    columns = {
        "instruction": "what is asked",
        "input": "what it is asked about; may be empty",
        "output": "the answer; not read where there are chosen and rejected",
        "history": "earlier turns, a list of [question, answer] pairs",
        **SHARED_COLUMNS,
        **PAIR_COLUMNS,
        **LABEL_COLUMNS,
    }
    required = frozenset({"instruction", "output"})

    @classmethod
    def matches(cls, values: Mapping[str, Any]) -> bool:
        return super().matches(values) or {"instruction", *PAIR_COLUMNS} <= values.keys()

    def read(self, record: Record) -> Conversation:
        values = record.values
        messages = _read_history(values["history"]) if values.get("history") else []
        parts = (read_text(read_column(values, "instruction"), "instruction"), read_optional_text(values, "input"))
        question = "\n".join(part for part in parts if part)
        if not question.strip():
            raise RowError("instruction", "is empty, and so is input; one of them must hold the question")
        messages.append(Message("user", question))
        if has_pair(values):
            return assemble_pair(record, messages, *read_endings(values))
        answer = read_filled_text(read_column(values, "output"), "output")
        return with_label(assemble(record, [*messages, Message("assistant", answer)], "output"), values)


def _read_history(value: Any) -> list[Message]:
    messages = []
    for index, pair in enumerate(read_list(value, "history", "[question, answer] pairs")):
        place = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(place, f"found {describe(pair)}; must be a [question, answer] pair")
        messages.append(Message("user", read_filled_text(pair[0], f"{place}[0]")))
        messages.append(Message("assistant", read_filled_text(pair[1], f"{place}[1]")))
    return messages
