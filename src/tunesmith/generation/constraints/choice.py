"""One of a list of answers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from tunesmith.core.errors import UserError
from tunesmith.generation.constraints._base import Constraint, Walk

if TYPE_CHECKING:
    from tunesmith.data.conversation import Conversation
    from tunesmith.generation.constraints._base import Mask
    from tunesmith.generation.vocabulary import Vocabulary


class Choice(Constraint):
    """Lets a model write only one of the answers listed."""

    choices: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """The answers, of which one is written from beginning to end."""

    def start(
        self,
        vocabulary: Vocabulary,
        conversation: Conversation | None = None,  # noqa: ARG002 - the base's
        seed: int = 0,  # noqa: ARG002 - the base's
    ) -> Walk:
        """Return the walk that answers start from; raise :class:`UserError` where a choice cannot be written."""
        for choice in self.choices:
            if not _spelt(choice.encode(), vocabulary):
                raise UserError(f"constraint choice: this tokenizer cannot write {choice!r}")
        left = {choice.encode() for choice in self.choices}
        if vocabulary.leading_space:
            left |= {b" " + each for each in left}
        return _ChoiceWalk(frozenset(left), vocabulary)


class _ChoiceWalk(Walk):
    """What is left to write of each answer that is still possible."""

    def __init__(self, left: frozenset[bytes], vocabulary: Vocabulary) -> None:
        self._left, self._vocabulary = left, vocabulary

    @cached_property
    def _mask(self) -> Mask:
        mask = np.zeros(self._vocabulary.size, dtype=np.bool_)
        self._vocabulary.trie.accept(self._left, _step, mask)
        return mask

    def allowed(self) -> Mask:
        return self._mask

    def advance(self, token: int) -> Walk:
        spelling = self._vocabulary.spellings[token]
        left = frozenset(each[len(spelling) :] for each in self._left if spelling and each.startswith(spelling))
        if not left:
            raise ValueError(f"token {token} may not stand here")
        return _ChoiceWalk(left, self._vocabulary)

    @property
    def finished(self) -> bool:
        return b"" in self._left


def _step(left: Any, byte: int) -> Any:
    return frozenset(each[1:] for each in left if each and each[0] == byte) or None


def _spelt(text: bytes, vocabulary: Vocabulary) -> bool:
    """Say whether tokens of *vocabulary* join to *text*."""
    reached = {0}
    longest = max(map(len, vocabulary.spellings), default=0)
    for start in range(len(text)):
        if start in reached:
            ends = range(start + 1, min(len(text), start + longest) + 1)
            reached |= {end for end in ends if text[start:end] in vocabulary.tokens_of}
    return len(text) in reached
