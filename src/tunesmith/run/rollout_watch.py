"""Watch what a model writes while it trains: the usual ways to cheat show in the answers, not in the reward."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from tunesmith.prosody.readings import readings_for
from tunesmith.prosody.text import is_han, split_text

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

# our judgement: how many first steps say what is usual, and what is no longer so
_USUAL_STEPS = 5
_LONGER, _SHORTER = 2.0, 0.5
_REPEATED, _SAME, _COPIED = 0.5, 0.5, 0.2
_FEWEST_ANSWERS = 8
# shorter lines are set phrases, and found anywhere
_SHORTEST_LINE = 5
# rhymes are counted over so many steps and prompts at least: of a few prompts many may rhyme by chance, or by wish
_ONE_RHYME, _RHYME_STEPS, _RHYME_PROMPTS = 0.6, 5, 16
# characters of the longest line of a ci
_LONGEST_VERSE_LINE = 11

_BREAKS = re.compile(r"[\n。！？；，,.!?;]+")


def lines_of(text: str) -> list[str]:
    """Return the lines and clauses of a text that are long enough to be somebody's."""
    return [line for part in _BREAKS.split(text) if len(line := part.strip()) >= _SHORTEST_LINE]


def repeated_share(text: str) -> float:
    """Return the share of a text's pairs of neighbouring characters that it had before."""
    pairs = [text[at : at + 2] for at in range(len(text) - 1)]
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def rhyme_of(text: str) -> str | None:
    """Return the rhyme group in which a Chinese verse ends; None for other texts, and for an unknown last word."""
    lines = split_text(text).clauses
    if len(lines) < 2 or not all(len(each) <= _LONGEST_VERSE_LINE and all(map(is_han, each)) for each in lines):
        return None
    found = readings_for(text).of(lines[-1][-1])
    return found[0].group if found else None


def rhymes_by_prompt(texts: Sequence[str], prompts: Sequence[Hashable]) -> dict[str, float]:
    """Return in how many prompts each rhyme group was written: of a prompt's answers, each is a part of it."""
    count = Counter(prompts)
    found: dict[str, float] = {}
    for text, prompt in zip(texts, prompts, strict=True):
        if (group := rhyme_of(text)) is not None:
            found[group] = found.get(group, 0.0) + 1 / count[prompt]
    return found


class RolloutWatch:
    """Measures the answers of each step and raises an alarm once for each way to cheat, when it is first seen."""

    def __init__(self, learnt: Iterable[str], *, rewarded: bool = True) -> None:
        """*learnt* are the texts that nothing should be copied from: answers of the training data.

        Where nothing is *rewarded*, a change of length and what was copied are no cheating: imitation brings both.
        """
        self.rewarded = rewarded
        self.lines = frozenset(line for text in learnt for line in lines_of(text))
        self.lengths: list[float] = []
        self.repeated: list[float] = []
        self.first_rhymes: list[dict[str, float]] = []
        self.last_rhymes: list[dict[str, float]] = []
        self.raised: list[str] = []

    def look(
        self, step: int, texts: Sequence[str], tokens: Sequence[int], prompts: Sequence[Hashable] = ()
    ) -> tuple[dict[str, float], list[str]]:
        """Return what the answers of *step* measure, and the alarms that are new.

        *prompts* says which each is an answer to; left out, answers to different prompts are not compared.
        """
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
        if self.rewarded and (length > _LONGER * usual or length < _SHORTER * usual):
            found["length"] = (
                f"answers have {length:.0f} tokens, and had {usual:.0f} at first: length is being rewarded"
            )
        if repeated > max(_REPEATED, 2 * before):
            found["repetition"] = f"{repeated:.0%} of neighbouring characters stood in the answer before: it repeats"
        if most > _SAME and len(texts) >= _FEWEST_ANSWERS:
            found["same"] = f"{most:.0%} of the answers are the same, whatever the prompt: one answer for all"
        if self.rewarded and measured["copied"] > _COPIED:
            found["copied"] = f"{measured['copied']:.0%} of the lines stand in the training data: it recites"
        found |= self._rhymes(rhymes_by_prompt(texts, prompts) if prompts else {}, measured)
        new = [name for name in found if name not in self.raised]
        self.raised += new
        return measured, [f"step {step}: {found[name]}" for name in new]

    def _rhymes(self, rhymes: dict[str, float], measured: dict[str, float]) -> dict[str, str]:
        """Note which *rhymes* the verses of a step have, add to *measured* how alike; return the alarm, if any."""
        if not rhymes:
            return {}
        if not _enough(self.first_rhymes):
            self.first_rhymes.append(rhymes)
        self.last_rhymes.append(rhymes)
        while _enough(self.last_rhymes[1:]):
            del self.last_rhymes[0]
        (_, usual), (group, share) = _commonest(self.first_rhymes), _commonest(self.last_rhymes)
        measured["same_rhyme"] = _commonest([rhymes])[1]
        if not _enough(self.last_rhymes) or share <= max(_ONE_RHYME, 2 * usual):
            return {}
        first = f"{usual:.0%} did at first"
        return {"rhyme": f"{share:.0%} of the verses end in one rhyme group ({group}), {first}: one rhyme for all"}

    def state(self) -> dict[str, Any]:
        """Return what the next step's alarms depend on."""
        rhymes = {"first_rhymes": self.first_rhymes, "last_rhymes": self.last_rhymes}
        return {"lengths": self.lengths, "repeated": self.repeated, "raised": self.raised, **rhymes}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a :meth:`state`."""
        self.lengths, self.repeated, self.raised = (list(state[name]) for name in ("lengths", "repeated", "raised"))
        # of a run that began before rhymes were watched there are none
        self.first_rhymes, self.last_rhymes = (list(state.get(f"{name}_rhymes", [])) for name in ("first", "last"))


def _enough(steps: Sequence[Mapping[str, float]]) -> bool:
    """Return whether the rhymes of *steps* are enough to judge by."""
    prompts = round(sum(sum(each.values()) for each in steps), 3)  # a sum of parts
    return len(steps) >= _RHYME_STEPS and prompts >= _RHYME_PROMPTS


def _commonest(steps: Sequence[Mapping[str, float]]) -> tuple[str, float]:
    """Return the commonest rhyme group of some steps, and its share."""
    total: Counter[str] = Counter()
    for each in steps:
        total.update(each)
    group, most = total.most_common(1)[0]
    return group, most / total.total()
