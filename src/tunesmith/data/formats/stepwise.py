"""A ``prompt``, the steps of its answer as ``completions``, and whether each is right, ``labels``: TRL's format."""

from dataclasses import replace

from tunesmith.data.conversation import Conversation, Message, Record, RowError
from tunesmith.data.describe import describe
from tunesmith.data.formats._base import Format
from tunesmith.data.formats._turns import (
    SHARED_COLUMNS,
    assemble,
    read_column,
    read_filled_text,
    read_list,
    read_messages,
)


class Stepwise(Format):
    """Read answers whose steps were judged one by one; read as a dialogue, the answer is its steps, a line each."""

    columns = {
        "prompt": "the question: text, or a list of messages",
        "completions": "the steps of the answer, a list of texts",
        "labels": "whether each step is right, a list of true and false (or 1 and 0)",
        **SHARED_COLUMNS,
    }
    required = frozenset({"prompt", "completions", "labels"})

    def read(self, record: Record) -> Conversation:
        prompt = read_column(record.values, "prompt")
        asked = (
            read_messages(prompt, "prompt")
            if isinstance(prompt, list)
            else [Message("user", read_filled_text(prompt, "prompt"))]
        )
        found = read_list(read_column(record.values, "completions"), "completions", "steps, each a text")
        steps = tuple(read_filled_text(step, f"completions[{index}]") for index, step in enumerate(found))
        labels = read_list(read_column(record.values, "labels"), "labels", "true and false")
        for index, label in enumerate(labels):
            if label not in (True, False):
                raise RowError(f"labels[{index}]", f"found {describe(label)}; must be true or false")
        if len(labels) != len(steps):
            raise RowError("labels", f"has {len(labels)} labels for {len(steps)} steps; must have one for each")
        whole = assemble(record, [*asked, Message("assistant", "\n".join(steps))], "completions")
        return replace(whole, steps=steps, step_labels=tuple(bool(label) for label in labels))
