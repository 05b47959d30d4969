"""Checkpoints whose tokenizer is a SentencePiece model and nothing else: read to the letter, with no other package.

transformers converts such files by the class that the checkpoint names, and not by what the file says of spaces: the
same Llama-2 file gives other tokens under another class, and three tokens in all where a package is missing.  Here the
file alone decides (google/sentencepiece, ``sentencepiece_model.proto``), so that ids are those of pretraining.
"""

from __future__ import annotations

import json
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

FILE = "tokenizer.model"
# classes whose ids are the file's own; the others (T5, XLM-R, …) move them about in code of their own
_PLAIN = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "TokenizersBackend", "PreTrainedTokenizer")
_PLAIN_MODELS = ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "gemma3_text")
_BESIDE = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer_config.json")
_SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
# where the fields of the messages stand
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3


@dataclass(frozen=True)
class SentencePieceModel:
    """What a SentencePiece model file says."""

    pieces: tuple[tuple[str, float, int], ...]
    """Each token, its score, and its kind."""
    kind: int
    byte_fallback: bool
    suffix_spaces: bool
    charsmap: bytes
    dummy_prefix: bool
    collapses_spaces: bool

    def piece(self, kind: int) -> str | None:
        """Return the first token of a *kind*."""
        return next((text for text, _, its_kind in self.pieces if its_kind == kind), None)

    def control(self, token: str) -> str | None:
        """Return *token* if it is one that no text has."""
        return token if any(text == token and kind == _CONTROL for text, _, kind in self.pieces) else None


def read_sentencepiece(path: Path) -> SentencePieceModel | None:
    """Return what the file at *path* says; None where it is no SentencePiece model (Llama 3's is tiktoken's)."""
    data = path.read_bytes()
    if not data.startswith(b"\n"):
        return None
    try:
        fields = list(_fields(data))
        trainer = dict(_fields(b"".join(_bytes(value) for number, value in fields if number == _TRAINER)))
        rules = dict(_fields(b"".join(_bytes(value) for number, value in fields if number == _NORMALIZER)))
        pieces = tuple(_piece(_bytes(value)) for number, value in fields if number == _PIECES)
    except (ValueError, IndexError, struct.error):
        return None
    return SentencePieceModel(
        pieces=pieces,
        kind=cast("int", trainer.get(3, _UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        suffix_spaces=bool(trainer.get(24, 0)),
        charsmap=_bytes(rules.get(2, b"")),
        dummy_prefix=bool(rules.get(3, 1)),
        collapses_spaces=bool(rules.get(4, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield the number and value of each field of a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("cut short")
            yield number, data[at : at + length]
            at += length
        elif wire == 5:
            yield number, struct.unpack_from("<f", data, at)[0]
            at += 4
        elif wire == 1:
            yield number, struct.unpack_from("<d", data, at)[0]
            at += 8
        else:
            raise ValueError(f"no such wire type: {wire}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _bytes(value: float | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a message was expected")
    return value


def _piece(data: bytes) -> tuple[str, float, int]:
    found = dict(_fields(data))
    return _bytes(found[1]).decode(), cast("float", found.get(2, 0.0)), cast("int", found.get(3, 1))


def sentencepiece_folder(path: str, revision: str | None) -> Path | None:
    """Return the folder of the tokenizer at *path*, a folder or Hub name, if it is a SentencePiece model alone.

    None where there is a tokenizer.json, or where ids are not the file's own.
    """
    folder = Path(path) if Path(path).is_dir() else _fetched(path, revision)
    if folder is None or not (folder / FILE).is_file() or (folder / "tokenizer.json").exists():
        return None
    config = _read(folder / "tokenizer_config.json")
    if config.get("auto_map"):
        return None  # code that comes with the model says what its tokens are
    named, kind = config.get("tokenizer_class"), _read(folder / "config.json").get("model_type", "llama")
    plain = kind in _PLAIN_MODELS if named is None else str(named).removesuffix("Fast") in _PLAIN
    return folder if plain else None


def _fetched(name: str, revision: str | None) -> Path | None:
    """Return where the Hub's files of a tokenizer are kept, if a SentencePiece model is all that there is."""
    from transformers.utils.hub import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    options: dict[str, Any] = {"revision": revision, **quiet}
    if cached_file(name, "tokenizer.json", **options) is not None:
        return None
    found = cached_file(name, FILE, **options)
    if found is None:
        return None
    for beside in (*_BESIDE, "config.json"):
        cached_file(name, beside, **options)
    return Path(found).parent


def load_sentencepiece(folder: Path, name: str) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of *folder*, called *name*, made of its SentencePiece model; None where that is no such.

    Raises :class:`UserError` for a model that tokens cannot be made of as SentencePiece makes them.
    """
    from transformers import AutoTokenizer

    model = read_sentencepiece(folder / FILE)
    if model is None:
        return None
    config = _read(folder / "tokenizer_config.json")
    inner = _build(model, folder / FILE, config)
    with tempfile.TemporaryDirectory() as whole:
        for file in filter(Path.exists, (folder / beside for beside in _BESIDE)):
            (Path(whole) / file.name).write_bytes(file.read_bytes())
        inner.save(f"{whole}/tokenizer.json")
        usual = {
            "unk_token": model.piece(_UNKNOWN),
            "bos_token": model.control("<s>"),
            "eos_token": model.control("</s>"),
        }
        special = _read(folder / "special_tokens_map.json")
        named = {key: token for key, token in usual.items() if token and key not in special}
        settled = {**named, **config, "tokenizer_class": "PreTrainedTokenizerFast"}
        (Path(whole) / "tokenizer_config.json").write_text(json.dumps(settled), "utf-8")
        found = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(whole))
    found.name_or_path = name
    return found


def _build(model: SentencePieceModel, path: Path, config: dict[str, Any]) -> Tokenizer:
    """Return what encodes as the file says; ``legacy: false`` puts a space before the whole text alone."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if model.kind not in (_UNIGRAM, _BPE) or model.suffix_spaces or model.piece(_UNUSED):
        raise UserError(
            f"model: {path} is a SentencePiece model of a kind that Tunesmith cannot read exactly (words, characters, "
            "spaces at the end of words, or unused pieces); give a checkpoint that has a tokenizer.json"
        )
    unknown = model.piece(_UNKNOWN)
    core: models.Model
    if model.kind == _BPE:
        ids = {text: index for index, (text, _, _) in enumerate(model.pieces)}
        core = models.BPE(
            vocab=ids, merges=_merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback
        )
    else:
        kinds = [kind for _, _, kind in model.pieces]
        scores = [(text, score) for text, score, _ in model.pieces]
        core = models.Unigram(scores, unk_id=kinds.index(_UNKNOWN), byte_fallback=model.byte_fallback)
    inner = Tokenizer(core)
    rules: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.collapses_spaces:
        # those of the whole text, not of each line, and no line breaks
        rules += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    prefix = model.dummy_prefix and config.get("add_prefix_space") is not False
    once = prefix and config.get("legacy") is False
    if once:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    else:
        rules += [normalizers.Prepend(_SPACE)] * prefix + [normalizers.Replace(" ", _SPACE)]
    if rules:
        inner.normalizer = normalizers.Sequence(rules)
    reverse: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(reverse + [decoders.Strip(" ", 1, 0)] * prefix)
    for text, _, kind in model.pieces:
        if kind in (_CONTROL, _UNKNOWN):
            inner.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            inner.add_tokens([AddedToken(text, normalized=False)])
    _begin_and_end(inner, config)
    return inner


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Return the pairs that become a token, the one with the best score first, as SentencePiece joins them."""
    joined = {text for text, _, kind in model.pieces if kind not in (_CONTROL, _UNKNOWN, _BYTE)}
    order = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    ranked = sorted((-score, order[text], text) for text, score, _ in model.pieces if text in joined and len(text) > 1)
    return [
        (text[:at], text[at:])
        for _, _, text in ranked
        for at in range(1, len(text))
        if text[:at] in joined and text[at:] in joined
    ]


def _begin_and_end(inner: Tokenizer, config: dict[str, Any]) -> None:
    """Let plain texts begin, and end, with the tokens that the checkpoint's configuration says they do."""
    from tokenizers import processors

    def name(setting: str, usual: str) -> str | None:
        token = config.get(setting, usual)
        token = token.get("content") if isinstance(token, dict) else token
        return token if token is not None and inner.token_to_id(token) is not None else None

    begin = name("bos_token", "<s>") if config.get("add_bos_token", True) else None
    end = name("eos_token", "</s>") if config.get("add_eos_token", False) else None
    single = [*filter(None, [begin]), "$A", *filter(None, [end])]
    special = [(token, inner.token_to_id(token)) for token in dict.fromkeys(filter(None, (begin, end)))]
    pair = [*single, *(part.replace("$A", "$B:1") if part == "$A" else f"{part}:1" for part in single)]
    inner.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; empty where there is none."""
    return cast("dict[str, Any]", json.loads(path.read_text("utf-8"))) if path.is_file() else {}
