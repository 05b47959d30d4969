"""What the constraints share that llguidance computes: a grammar, walked token by token."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import is_missing
from tunesmith.generation.constraints._base import Constraint, Walk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunesmith.data.conversation import Conversation
    from tunesmith.generation.constraints._base import Mask
    from tunesmith.generation.vocabulary import Vocabulary

_PACKAGE = "llguidance"
_MOST_GRAMMARS = 64
_MISSING = f"needs the package {_PACKAGE}; install it with: pip install {_PACKAGE}"


class AbstractGrammar(Constraint):
    """Holds answers to a grammar of llguidance."""

    @abstractmethod
    def grammar(self, *, leading_space: bool) -> str:
        """Return the grammar; with *leading_space*, one in which a space may stand before what is asked for."""

    def check(self, recipe: Any) -> Iterable[Problem]:  # noqa: ARG002 - the base's
        """Yield that the package is missing."""
        if is_missing(_PACKAGE):
            yield Problem("evaluation.generation.constraint", f"{self.type_name()} {_MISSING}")

    def start(
        self,
        vocabulary: Vocabulary,
        conversation: Conversation | None = None,  # noqa: ARG002 - the base's
        seed: int = 0,  # noqa: ARG002 - the base's
    ) -> Walk:
        """Return the walk that answers start from; raise :class:`UserError` for a grammar that there cannot be."""
        key = (self.type_name(), self.model_dump_json())
        grammars: dict[tuple[str, str], Walk] = vocabulary.caches.setdefault("grammars", {})
        known = grammars.get(key)
        if known is None:
            if is_missing(_PACKAGE):
                raise UserError(f"constraint {self.type_name()} {_MISSING}")
            from llguidance import LLMatcher

            try:
                grammar = self.grammar(leading_space=vocabulary.leading_space)
            except ValueError as error:
                raise UserError(f"constraint {self.type_name()}: {error}") from None
            matcher = LLMatcher(_tokenizer(vocabulary), grammar, log_level=0)
            if matcher.is_error():
                raise UserError(f"constraint {self.type_name()}: {_first_line(matcher.get_error())}")
            known = grammars[key] = _GrammarWalk(matcher, vocabulary)
            while len(grammars) > _MOST_GRAMMARS:  # clients of a server send ever new ones
                grammars.pop(next(iter(grammars)), None)
        return known


class _GrammarWalk(Walk):
    """A state of the matcher; the mask is computed when it is first asked for."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._mask: Mask | None = None

    def allowed(self) -> Mask:
        if self._mask is None:
            allowed = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8) != 0
            if self._matcher.is_error():
                raise ValueError(f"llguidance: {_first_line(self._matcher.get_error())}")
            mask = allowed[: self._vocabulary.size].copy()
            mask[list(self._vocabulary.special)] = False
            self._mask = mask
        return self._mask

    def advance(self, token: int) -> Walk:
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token):
            raise ValueError(f"token {token} may not stand here")
        return _GrammarWalk(matcher, self._vocabulary)

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_accepting())


def _tokenizer(vocabulary: Vocabulary) -> Any:
    """Return llguidance's tokenizer of *vocabulary*, with an end token of its own behind the others."""
    if "llguidance" not in vocabulary.caches:
        from llguidance import LLTokenizer, TokenizerWrapper

        vocabulary.caches["llguidance"] = LLTokenizer(TokenizerWrapper(_Spellings(vocabulary)), slices=[])
    return vocabulary.caches["llguidance"]


class _Spellings:
    """A vocabulary as llguidance wants it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = [*vocabulary.spellings, b"<end of the answer>"]
        self.eos_token_id = vocabulary.size
        self.special_token_ids = [vocabulary.size]
        self._tokens_of = vocabulary.tokens_of
        self._longest = max(map(len, vocabulary.spellings), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """Return the longest tokens that *text*, which a grammar leaves no choice about, can be written in."""
        tokens, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._tokens_of), None)
            if end is None:
                break
            tokens.append(self._tokens_of[text[start:end]][0])
            start = end
        return tokens


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]
