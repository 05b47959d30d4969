"""Watch what a model writes while it is rewarded: the usual ways to cheat show in the answers, not in the reward."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# our judgement: how many first steps say what is usual, and what is no longer so
_USUAL_STEPS = 5
_LONGER, _SHORTER = 2.0, 0.5
_REPEATED, _SAME, _COPIED = 0.5, 0.5, 0.2
_FEWEST_ANSWERS = 8
# shorter lines are set phrases, and found anywhere
_SHORTEST_LINE = 5

_BREAKS = re.compile(r"[\n。！？；，,.!?;]+")


def lines_of(text: str) -> list[str]:
    """Return the lines and clauses of a text that are long enough to be somebody's."""
    return [line for part in _BREAKS.split(text) if len(line := part.strip()) >= _SHORTEST_LINE]


def repeated_share(text: str) -> float:
    """Return the share of a text's pairs of neighbouring characters that it had before."""
    pairs = [text[at : at + 2] for at in range(len(text) - 1)]
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


class RolloutWatch:
    """Measures the answers of each step and raises an alarm once for each way to cheat, when it is first seen."""

    def __init__(self, learnt: Iterable[str]) -> None:
        """*learnt* are the texts that nothing should be copied from: answers of the training data."""
        self.lines = frozenset(line for text in learnt for line in lines_of(text))
        self.lengths: list[float] = []
        self.repeated: list[float] = []
        self.raised: list[str] = []

    def look(self, step: int, texts: Sequence[str], tokens: Sequence[int]) -> tuple[dict[str, float], list[str]]:
        """Return what the answers of *step* measure, and the alarms that are new."""
        counts = Counter(texts)
        written = [line for text in texts for line in lines_of(text)]
        measured = {
            "answer_tokens": sum(tokens) / len(tokens),
            "repeated": sum(map(repeated_share, texts)) / len(texts),
            "different": len(counts) / len(texts),
            "copied": sum(line in self.lines for line in written) / max(1, len(written)),
        }
        most = counts.most_common(1)[0][1] / len(texts)
        length, repeated = measured["answer_tokens"], measured["repeated"]
        if len(self.lengths) < _USUAL_STEPS:
            self.lengths.append(length)
            self.repeated.append(repeated)
        usual = sum(self.lengths) / len(self.lengths)
        before = sum(self.repeated) / len(self.repeated)
        found = {}
        if length > _LONGER * usual or length < _SHORTER * usual:
            found["length"] = (
                f"answers have {length:.0f} tokens, and had {usual:.0f} at first: length is being rewarded"
            )
        if repeated > max(_REPEATED, 2 * before):
            found["repetition"] = f"{repeated:.0%} of neighbouring characters stood in the answer before: it repeats"
        if most > _SAME and len(texts) >= _FEWEST_ANSWERS:
            found["same"] = f"{most:.0%} of the answers are the same, whatever the prompt: one answer for all"
        if measured["copied"] > _COPIED:
            found["copied"] = f"{measured['copied']:.0%} of the lines stand in the training data: it recites"
        new = [name for name in found if name not in self.raised]
        self.raised += new
        return measured, [f"step {step}: {found[name]}" for name in new]

    def state(self) -> dict[str, Any]:
        """Return what the next step's alarms depend on."""
        return {"lengths": self.lengths, "repeated": self.repeated, "raised": self.raised}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a :meth:`state`."""
        self.lengths, self.repeated, self.raised = (list(state[name]) for name in ("lengths", "repeated", "raised"))
