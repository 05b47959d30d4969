"""Tool call match: the calls of the answer are the reference's, names and arguments."""

import json
from collections import Counter
from typing import Any

from tunesmith.data.conversation import Conversation, call_as_text
from tunesmith.scoring._base import Score, Scorer


class ToolCallMatch(Scorer):
    """Give the share of calls that are right, and 1 where neither the answer nor the reference calls a tool.

    A call is right when name and arguments equal those of a call of the reference, as JSON values; it is measured as
    F1, so that calls too many and calls too few both cost.  An answer's calls are its lines of JSON with ``name`` and
    ``arguments``: so evaluation writes what it read from the model's own form.
    """

    ordered: bool = False
    """The calls must come in the order of the reference, all of them: 1 or 0; turn on where the order matters."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the score of the calls in *answer*, and which are missing or too many."""
        expected, found = [call_as_text(call) for call in conversation.reference_calls()], _calls_in(answer)
        if not expected and not found:
            return Score(1.0, "no calls, as in the reference")
        if self.ordered:
            return Score(float(expected == found), "" if expected == found else _difference(expected, found))
        shared = (Counter(expected) & Counter(found)).total()
        return Score(2 * shared / (len(expected) + len(found)), _difference(expected, found))


def _calls_in(answer: str) -> list[str]:
    return [call for line in answer.splitlines() if (call := _call_in(line))]


def _call_in(line: str) -> str:
    """Return the call that *line* is, in one spelling; nothing where it is none."""
    try:
        value: Any = json.loads(line)
        return call_as_text(value) if isinstance(value, dict) and {*value} == {"name", "arguments"} else ""
    except (ValueError, RecursionError):
        return ""


def _difference(expected: list[str], found: list[str]) -> str:
    missing, extra = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    parts = [f"missing: {'; '.join(missing)}"] if missing else []
    parts += [f"not in the reference: {'; '.join(extra)}"] if extra else []
    return " | ".join(parts) or ("the calls of the reference" if expected == found else "in another order")
