"""The contract of a constraint: which tokens may follow what was written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tunesmith.core.errors import Problem
from tunesmith.core.registry import Spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.data.conversation import Conversation
    from tunesmith.generation.vocabulary import Vocabulary

    Mask = NDArray[np.bool_]


class Walk(ABC):
    """A place in one answer: what may be written next.

    Walks do not change: :meth:`advance` returns another one, so beams and samples that begin alike share their walks.
    Several threads may advance walks of one constraint at once.
    """

    @abstractmethod
    def allowed(self) -> Mask:
        """Return for each token of the vocabulary ``[V]`` whether it may follow; do not write into the array.

        At least one is allowed unless the answer is :attr:`finished`.  Special tokens are no text and not allowed here:
        whoever writes the answer allows those that end it, exactly where it is finished.
        """

    @abstractmethod
    def advance(self, token: int) -> Walk:
        """Return the walk after *token*, which did not end the answer; ``ValueError`` if it is not allowed."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether what was written is complete, so that the answer may end here."""

    @property
    def longest(self) -> int | None:
        """The most tokens that the whole answer can take, without the end token; ``None`` where no limit is known."""
        return None


class Constraint(Spec):
    """Holds answers to a form; the settings say which."""

    def start(self, vocabulary: Vocabulary, conversation: Conversation | None = None, seed: int = 0) -> Walk:
        """Return the walk that an answer to *conversation* starts from; equal seeds choose alike.

        Raises :class:`UserError` where this vocabulary cannot write the form, or the conversation lacks what the form
        needs.
        """
        raise NotImplementedError

    def check_vocabulary(self, vocabulary: Vocabulary, max_new_tokens: int) -> Iterable[Problem]:  # noqa: ARG002
        """Yield why answers of at most *max_new_tokens* cannot have the form; paths are relative to this block."""
        return ()
