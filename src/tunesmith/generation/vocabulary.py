"""The tokens of a tokenizer as the bytes they write: what constraints are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

# joined tokens are compared with what the tokenizer decodes: verse, marks, markup, numbers, characters beyond the BMP
_PROBES = (
    "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。",
    "春风又绿江南岸；明月何时照我还？",
    '{"name": "Ann",\n  "years": [1, 2.5, -3e4], "note": "naïve 𠀀 😀"}',
    "It is  a truth\tuniversally acknowledged: 12345 + 678.",
)
# and so many of its tokens
_SPREAD = 300


@dataclass(frozen=True)
class Trie:
    """The spellings of a vocabulary as a tree of bytes, laid out depth first.

    The first child of node *n* is ``n + 1`` unless ``end[n] == n + 1``; its next sibling is ``end[n]``.
    """

    byte: list[int]
    """The byte that leads to each node; node 0 is the root (its byte is -1)."""
    end: list[int]
    """One past the last node below each."""
    tokens: Mapping[int, tuple[int, ...]]
    """Node -> the tokens that are spelled by the way to it."""

    @classmethod
    def build(cls, spellings: Iterable[tuple[bytes, int]]) -> Trie:
        """Return the tree of the tokens that spell anything."""
        byte, depth = [-1], [0]
        tokens: dict[int, tuple[int, ...]] = {}
        before, node = b"", 0
        for spelling, token in sorted(each for each in spellings if each[0]):
            shared = 0
            if spelling != before:
                for one, other in zip(before, spelling, strict=False):
                    if one != other:
                        break
                    shared += 1
                node = len(byte) + len(spelling) - shared - 1
                byte += spelling[shared:]
                depth += range(shared + 1, len(spelling) + 1)
                before = spelling
            tokens[node] = (*tokens.get(node, ()), token)
        end = [len(byte)] * len(byte)
        # the last node seen at each depth, from the right: a subtree ends where something as high begins
        begins = [len(byte)] * (max(depth) + 2)
        for index in range(len(byte) - 1, -1, -1):
            level = depth[index]
            end[index] = begins[level]
            begins[level:] = [index] * (len(begins) - level)
        return cls(byte, end, tokens)

    def accept(self, state: Any, step: Callable[[Any, int], Any], mask: NDArray[np.bool_]) -> None:
        """Set *mask* for the tokens all of whose bytes an automaton takes from *state* on.

        ``step(state, byte)`` returns the next state, or ``None`` where the byte cannot follow.
        """
        byte, end, tokens = self.byte, self.end, self.tokens
        # (first node, one past the last, state before them)
        waiting = [(1, end[0], state)]
        while waiting:
            node, last, before = waiting.pop()
            while node < last:
                after = step(before, byte[node])
                if after is not None:
                    for token in tokens.get(node, ()):
                        mask[token] = True
                    if end[node] > node + 1:
                        waiting.append((node + 1, end[node], after))
                node = end[node]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that a model can write, as bytes.  Shared by all that is written with one tokenizer."""

    spellings: tuple[bytes, ...]
    """By token; empty for tokens that are no text: special ones, and places that no token has."""
    special: frozenset[int]
    """Tokens that are no text."""
    leading_space: bool
    """Whether an answer may begin with a space that is no part of it (SentencePiece writes one before each word)."""
    caches: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What constraints keep beside it, by keys of their own."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Return the vocabulary of *tokenizer*, made once; raise :class:`UserError` where its bytes cannot be told."""
        tokens, known = _KNOWN.get(tokenizer, (0, None))
        if known is None or tokens != len(tokenizer):  # tokens were added
            known = _read(tokenizer)
            _KNOWN[tokenizer] = (len(tokenizer), known)
        return known

    @property
    def size(self) -> int:
        """The number of tokens; logits beyond it belong to no token."""
        return len(self.spellings)

    @cached_property
    def tokens_of(self) -> Mapping[bytes, tuple[int, ...]]:
        """Spelling -> the tokens that have it."""
        found: dict[bytes, tuple[int, ...]] = {}
        for token, spelling in enumerate(self.spellings):
            if spelling:
                found[spelling] = (*found.get(spelling, ()), token)
        return found

    @cached_property
    def trie(self) -> Trie:
        """The spellings as a tree of bytes."""
        return Trie.build((spelling, token) for token, spelling in enumerate(self.spellings))

    def spell(self, tokens: Iterable[int]) -> bytes:
        """Return what *tokens* write."""
        return b"".join(self.spellings[token] for token in tokens)


_KNOWN: WeakKeyDictionary[Any, tuple[int, Vocabulary]] = WeakKeyDictionary()


def _read(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Return the vocabulary of *tokenizer* after comparing it with what the tokenizer decodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"answers cannot be held to a form with {type(tokenizer).__name__}: it has no tokenizer.json, so what each "
            "of its tokens writes cannot be told"
        )
    described = json.loads(backend.to_str())
    decoders = _decoders(described.get("decoder"))
    kinds = [decoder["type"] for decoder in decoders]
    byte_level = "ByteLevel" in kinds
    space = "Metaspace" in kinds or any(
        decoder["type"] == "Replace" and decoder["pattern"].get("String") == "▁" for decoder in decoders
    )
    fallback = "ByteFallback" in kinds
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    size = 1 + max(tokenizer.get_vocab().values())
    spellings = []
    for index, text in enumerate(tokenizer.convert_ids_to_tokens(list(range(size)))):
        if index in special or text is None:
            special.add(index)
            spellings.append(b"")
        elif index in added:
            spellings.append(text.encode())
        else:
            spellings.append(_spelling(text, byte_level=byte_level, space=space, fallback=fallback))
    # a spelling of nothing would let an answer stand still for ever
    special |= {index for index, spelling in enumerate(spellings) if not spelling}
    vocabulary = Vocabulary(tuple(spellings), frozenset(special), leading_space=space)
    _compare(vocabulary, tokenizer)
    return vocabulary


def _decoders(described: dict[str, Any] | None) -> list[dict[str, Any]]:
    if described is None:
        return []
    return (
        [each for one in described["decoders"] for each in _decoders(one)] if "decoders" in described else [described]
    )


def _spelling(text: str, *, byte_level: bool, space: bool, fallback: bool) -> bytes:
    if byte_level:
        letters = _byte_letters()
        return bytes(letters[letter] for letter in text) if all(letter in letters for letter in text) else text.encode()
    if fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return (text.replace("▁", " ") if space else text).encode()


def _byte_letters() -> dict[str, int]:
    """Return letter -> byte of byte-level vocabularies (GPT-2): printable bytes are themselves, others follow 255."""
    if not _LETTERS:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        _LETTERS.update({chr(byte): byte for byte in printable})
        others = [byte for byte in range(256) if byte not in printable]
        _LETTERS.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return _LETTERS


_LETTERS: dict[str, int] = {}


def _compare(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise :class:`UserError` where joined spellings are not what the tokenizer decodes."""
    for tokens in (*(tokenizer.encode(probe, add_special_tokens=False) for probe in _PROBES), _texts_in(vocabulary)):
        written = [token for token in tokens if token not in vocabulary.special]  # but for unknown characters
        joined = vocabulary.spell(written).decode("utf-8", errors="replace")
        decoded = str(tokenizer.decode(written, clean_up_tokenization_spaces=False))
        if joined != decoded and not (vocabulary.leading_space and joined.removeprefix(" ") == decoded):
            place = next((n for n, (a, b) in enumerate(zip(joined, decoded, strict=False)) if a != b), 0)
            raise UserError(
                f"answers cannot be held to a form with this tokenizer ({type(tokenizer).__name__}): its tokens join "
                f"to {joined[place : place + 40]!r}, and it decodes them to {decoded[place : place + 40]!r}"
            )


def _texts_in(vocabulary: Vocabulary) -> list[int]:
    """Return tokens from all over the vocabulary that are whole characters; the probes may be unknown to it."""
    whole = [token for token, spelling in enumerate(vocabulary.spellings) if spelling and _is_text(spelling)]
    return whole[:: 1 + len(whole) // _SPREAD]


def _is_text(spelling: bytes) -> bool:
    try:
        return spelling.decode().isprintable()
    except UnicodeDecodeError:
        return False
