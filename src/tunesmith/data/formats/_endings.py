"""What formats share that read preferences: two endings of one prompt, or one answer that was liked or not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.conversation import Conversation, Message, Record, RowError
from tunesmith.data.describe import describe
from tunesmith.data.formats._turns import assemble, read_filled_text, read_messages

PAIR_COLUMNS = {
    "chosen": "the preferred answer, where rows are pairs: text, a message, or a list of them",
    "rejected": "the other answer to the same prompt",
}
MARGIN_COLUMN = {"margin": "by how much the chosen answer is better, for reward models; 0 where there is none"}
LABEL_COLUMNS = {
    "label": "whether the answer was liked, true or false, where answers are judged one by one",
    "label_weight": "how much that judgement counts; 1 where there is none",
}


def has_pair(values: Mapping[str, Any]) -> bool:
    """Say whether a row has two endings; raise :class:`RowError` where it has one of them alone."""
    there = [column for column in PAIR_COLUMNS if values.get(column) is not None]
    if len(there) == 1:
        (missing,) = set(PAIR_COLUMNS) - set(there)
        raise RowError(missing, f"is missing, but there is {there[0]}; a pair has both")
    return bool(there)


def read_endings(
    values: Mapping[str, Any], read_list: Callable[[Any, str], list[Message]] = read_messages
) -> tuple[list[Message], list[Message]]:
    """Return the chosen and the rejected ending; messages are read by *read_list*."""

    def read(column: str) -> list[Message]:
        value = values[column]
        if isinstance(value, str):
            return [Message("assistant", read_filled_text(value, column))]
        return read_list([value] if isinstance(value, dict) else value, column)

    return read("chosen"), read("rejected")


def are_whole(*endings: Sequence[Message]) -> bool:
    """Say whether endings are whole dialogues, with the prompt that they answer."""
    return all(ending[0].role in ("system", "user") for ending in endings)


def assemble_pair(
    record: Record, prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]
) -> Conversation:
    """Return the pair; answers inside the prompt are context.

    Of two whole dialogues, the prompt is what both begin with, whatever the row says beside them.
    """
    if are_whole(chosen, rejected):
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for column, ending in (("chosen", chosen), ("rejected", rejected)):
        if not ending:
            raise RowError(column, "says nothing after what both begin with; a pair has two different answers")
        if ending[0].role != "assistant":
            raise RowError(column, f"begins with a {ending[0].role} message; both must answer the same prompt")
    if tuple(chosen) == tuple(rejected):
        raise RowError("rejected", "is the same as chosen; there is nothing to prefer")
    if not prompt:
        raise RowError("prompt", "is empty; there must be something that both answer")
    asked = [_as_context(message) for message in prompt]
    whole = assemble(record, [*asked, *chosen], "chosen")
    assemble(record, [*asked, *rejected], "rejected")
    shared = len(whole.messages) - len(chosen)  # the row's system prompt may have come before
    return replace(whole, rejected=tuple(rejected), shared=shared, margin=_read_margin(record.values))


def _read_margin(values: Mapping[str, Any]) -> float:
    margin = values.get("margin")
    if margin is None:
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) < float("inf"):
        raise RowError("margin", f"found {describe(margin)}; must be a number")
    return float(margin)


def with_label(conversation: Conversation, values: Mapping[str, Any]) -> Conversation:
    """Return *conversation* with the row's label, if it has one."""
    label, weight = values.get("label"), values.get("label_weight")
    if label is None:
        return conversation
    if not isinstance(label, bool):
        hint = "leave the column out with columns: {label: null} if it is something else"
        raise RowError("label", f"found {describe(label)}; must be true or false. {hint}")
    if weight is None:
        weight = 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise RowError("label_weight", f"found {describe(weight)}; must be a number above 0")
    messages = conversation.messages
    asked = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
    turns = (*map(_as_context, messages[:asked]), *messages[asked:])  # what was judged is the last answer
    return replace(conversation, messages=turns, label=label, label_weight=float(weight))


def _as_context(message: Message) -> Message:
    return replace(message, trained=False) if message.role == "assistant" else message
