"""What was computed for replies that are finished, so that the next turn of a talk reads only what is new."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.generation.reply import AdapterWeights
    from tunesmith.generation.slots import Held


class _Kept(NamedTuple):
    adapter: AdapterWeights
    tokens: tuple[int, ...]
    held: Held


class KeptReplies:
    """Keys and values of finished replies with their prompts; who was of no use for longest goes first."""

    def __init__(self, most: int) -> None:
        """Keep at most *most* tokens."""
        self.most = most
        self._kept: list[_Kept] = []  # last used last

    def add(self, adapter: AdapterWeights, tokens: tuple[int, ...], held: Held) -> None:
        """Keep what a slot *held* for *tokens*, written by *adapter*, in place of what it goes on from."""
        self._kept = [
            each for each in self._kept if each.adapter != adapter or each.tokens != tokens[: len(each.tokens)]
        ]
        self._kept.append(_Kept(adapter, tokens, held))
        while sum(len(each.tokens) for each in self._kept) > self.most:
            del self._kept[0]

    def find(self, adapter: AdapterWeights, prompt: Sequence[int]) -> tuple[int, Held]:
        """Return how many tokens of *prompt* one begins with at most, all but its last one, and what was held."""
        best, found = 0, None
        for each in self._kept:
            if each.adapter == adapter:
                common = min(common_start(prompt, each.tokens), len(prompt) - 1)
                if common > best:
                    best, found = common, each
        if found is None:
            return 0, []
        self._kept = [*(each for each in self._kept if each is not found), found]
        return best, found.held


def common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens both begin with, comparing slices rather than tokens."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
