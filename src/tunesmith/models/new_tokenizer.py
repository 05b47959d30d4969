"""Make a tokenizer from text, for a model that starts from nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tunesmith.templates.library import read_template

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase

    from tunesmith.models.schema import NewTokenizer

END_OF_TEXT, TURN_BEGIN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END_OF_TEXT, TURN_BEGIN, TURN_END]


def make_tokenizer(wanted: NewTokenizer, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Return a tokenizer over *texts* with ChatML as its template; any text survives a round trip, by bytes at need."""
    from transformers import PreTrainedTokenizerFast

    inner = _characters(wanted, texts) if wanted.kind == "characters" else _byte_level_bpe(wanted, texts)
    inner.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_BEGIN],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = read_template("chatml").jinja
    return tokenizer


def _characters(wanted: NewTokenizer, texts: Iterable[str]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """One token a character, the most frequent first; what does not fit is written in UTF-8 bytes."""
    from tokenizers import Tokenizer, decoders, models

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    room = wanted.vocabulary_size - len(SPECIAL) - len(byte_tokens)
    # ties are broken by the character itself, so that the same text always gives the same ids
    characters = [c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:room]]
    tokens = [*SPECIAL, *byte_tokens, *characters]
    inner = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return inner


def _byte_level_bpe(wanted: NewTokenizer, texts: Iterable[str]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted.vocabulary_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner
