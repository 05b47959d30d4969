"""What a GGUF file says of a tokenizer, and how llama.cpp splits a text by it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

# how text is cut before bytes are joined -> what llama.cpp calls that (src/llama-vocab.cpp)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {"gpt-2": None, "qwen2": _QWEN2, "llama-bpe": _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}
# llama.cpp takes a word that is a token whole, without joining it, under this name alone
_WHOLE_WORDS = ("llama-bpe",)

# what tells tokenizers apart: runs of blanks, numbers, scripts, signs, words that are cut
TRIALS = (
    "Hello, world! It's 3.14 or 12345678, isn't it?",
    "  two  spaces   three\n\n\nlines\t\ttabs \r\n end ",
    "春风又绿江南岸，明月何时照我还？「平仄」",
    "def add(a, b):\n    return a + b  # sum\n",
    "Ünïcödé, Привет, こんにちは, 안녕, مرحبا, 🚀👩‍👩‍👧",
    "WE'LL don'T 'tis x=1;y=22;z=333 4444 <b>&amp;</b> ----- ......",
    "a",
    " a",
)


@dataclass(frozen=True)
class Tokens:
    """A tokenizer as a GGUF file has it."""

    model: str
    """``gpt2``: bytes that are joined by rules; ``llama``: characters that are joined by scores."""
    cut: str
    """llama.cpp's name for the way text is cut first (``tokenizer.ggml.pre``)."""
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_first: bool = False
    begins: bool = False
    """Whether plain text begins with the token that begins texts."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of *text* as llama.cpp splits it by scores (``llm_tokenizer_spm``), specials and all."""
        found: list[int] = []
        for index, part in enumerate(self._specials.split(text)):
            if index % 2:
                found.append(self._ids[part])
            elif part:
                found += self._joined((" " * self.space_first + part).replace(" ", _SPACE))
        return found

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        found = [t for t, kind in zip(self.tokens, self.kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
        return re.compile(f"({'|'.join(re.escape(t) for t in sorted(found, key=len, reverse=True)) or '(?!)'})")

    def _joined(self, text: str) -> list[int]:
        parts = list(text)
        while True:
            pairs = [
                (-self.scores[index], at)
                for at in range(len(parts) - 1)
                if (index := self._ids.get(parts[at] + parts[at + 1])) is not None
            ]
            if not pairs:
                break
            at = min(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [index for part in parts for index in self._or_bytes(part)]

    def _or_bytes(self, part: str) -> list[int]:
        if part in self._ids:
            return [self._ids[part]]
        return [self._ids[f"<0x{byte:02X}>"] for byte in part.encode()]


def describe_tokens(tokenizer: Any, size: int) -> Tokens:
    """Return *tokenizer* as a file with *size* tokens says it; raise :class:`UserError` for one that it cannot say."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("--to: this tokenizer is not one of the tokenizers library, whose files GGUF can hold")
    whole = json.loads(backend.to_str())
    core = whole["model"]
    if core["type"] != "BPE":
        raise UserError(f"--to: tokenizers of the kind {core['type']} are not written as GGUF here, only BPE is")
    if len(tokenizer) > size:
        raise UserError(f"--to: the tokenizer has {len(tokenizer)} tokens, and the model only {size} rows for them")
    begin = tokenizer.bos_token_id
    begins = begin is not None and tokenizer("a").input_ids[:1] == [begin]
    cut = None if core.get("byte_fallback") else _find_cut(whole)
    spelled, kinds = _spell(whole, size, by_bytes=cut is not None)
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in core["merges"]]
    if cut is not None:
        return Tokens("gpt2", cut, spelled, kinds, merges=tuple(" ".join(pair) for pair in merges), begins=begins)
    scores = _scores(core["vocab"], merges, size, kinds)
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids[:1])
    return Tokens(
        "llama", "default", spelled, kinds, scores=scores, space_first=first[0].startswith(_SPACE), begins=begins
    )


def _find_cut(whole: dict[str, Any]) -> str:
    """Return llama.cpp's name for the way in which this byte-level tokenizer cuts texts."""
    steps = whole["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    normalizer = (whole["normalizer"] or {}).get("type")
    if steps[-1].get("type") != "ByteLevel" or normalizer not in (None, "NFC"):
        raise UserError("--to: this tokenizer is neither byte-level BPE nor SentencePiece's; GGUF cannot hold it")
    pattern = None
    if len(steps) == 2 and steps[0]["type"] == "Split" and not steps[-1]["use_regex"]:
        pattern = steps[0]["pattern"].get("Regex")
    elif len(steps) > 1 or not steps[-1]["use_regex"]:
        pattern = "(none)"
    name = next((name for name, known in _CUTS.items() if known == pattern), None)
    if name is None or steps[-1]["add_prefix_space"]:
        raise UserError(f"--to: llama.cpp has no name that is known here for how this tokenizer cuts texts: {pattern}")
    if bool(whole["model"].get("ignore_merges")) != (name in _WHOLE_WORDS):
        raise UserError(f"--to: llama.cpp joins words otherwise than this tokenizer under the name {name}")
    return name


def _spell(whole: dict[str, Any], size: int, *, by_bytes: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the text and the kind of each of *size* tokens."""
    vocabulary: dict[str, int] = whole["model"]["vocab"]
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [UNUSED] * size
    bare_space = not by_bytes and " " in vocabulary
    if bare_space and any(_SPACE in token for token in vocabulary):
        raise UserError(f"--to: GGUF writes spaces as {_SPACE}, which is a character of its own to this tokenizer")
    for token, index in vocabulary.items():
        tokens[index] = token.replace(" ", _SPACE) if bare_space else token
        kinds[index] = BYTE if not by_bytes and _BYTE_TOKEN.fullmatch(token) else NORMAL
    if not by_bytes and not any(" " in token or _SPACE in token for token in vocabulary):
        # spaces are a byte to this tokenizer, and reach llama.cpp's as the sign that it writes for them
        tokens[vocabulary["<0x20>"]], kinds[vocabulary["<0x20>"]] = _SPACE, NORMAL
    for added in whole["added_tokens"]:
        index, text = added["id"], added["content"]
        # llama.cpp finds these in the text as it came, where spaces are still spaces
        tokens[index] = text if added["special"] else text.replace(_SPACE, " ")
        kinds[index] = CONTROL if added["special"] else USER_DEFINED
    unknown = whole["model"].get("unk_token")
    if unknown in vocabulary:
        kinds[vocabulary[unknown]] = UNKNOWN
    return tuple(tokens), tuple(kinds)


def _scores(
    vocabulary: dict[str, int], merges: Sequence[Sequence[str]], size: int, kinds: Sequence[int]
) -> tuple[float, ...]:
    """Return scores by which llama.cpp joins what *merges* join; refuse rules that scores cannot say."""
    rank: dict[str, int] = {}
    pairs = {(left, right) for left, right in merges}
    for place, (left, right) in enumerate(merges):
        rank.setdefault(left + right, place)
    scores = [-1e9] * size
    for token, index in vocabulary.items():
        if kinds[index] != NORMAL:
            continue
        if token in rank:
            scores[index] = -float(rank[token])
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        if any(a in vocabulary and b in vocabulary and (a, b) not in pairs for a, b in splits):
            raise UserError(f"--to: llama.cpp would join {token!r}, which this tokenizer does not; GGUF cannot hold it")
    return tuple(scores)


def write_tokens(writer: Any, found: Tokens, tokenizer: Any, stop_ids: Sequence[int]) -> None:
    """Write tokens, template and the tokens that end a turn to a ``GGUFWriter``."""
    if len(stop_ids) > 3:
        raise UserError(f"--to: GGUF has room for three tokens that end a turn, and this model has {len(stop_ids)}")
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.cut)
    writer.add_token_list(list(found.tokens))
    writer.add_token_types(list(found.kinds))
    if found.model == "gpt2":
        writer.add_token_merges(list(found.merges))
    else:
        writer.add_token_scores(list(found.scores))
        writer.add_add_space_prefix(found.space_first)
    add = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for write, stop in zip(add, stop_ids, strict=False):
        write(stop)
    # where a file names none, llama.cpp takes token 1, or 11
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
    writer.add_bos_token_id(begin if begin is not None else (*stop_ids, 0)[0])
    writer.add_add_bos_token(found.begins)
    writer.add_add_eos_token(False)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if UNKNOWN in found.kinds:
        writer.add_unk_token_id(found.kinds.index(UNKNOWN))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
