"""BLEU: how many of the answer's word sequences stand in the reference (by characters for Chinese)."""

import re
from collections.abc import Sequence
from typing import Literal

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import NO_REFERENCE, Score, Scorer
from tunesmith.scoring._share import as_share
from tunesmith.scoring._text import HAN


class Bleu(Scorer):
    """Precision of n-grams up to four, with a penalty for short answers (Papineni et al. 2002), by sacrebleu.

    One answer gets sacrebleu's sentence BLEU (smoothed, n-grams as long as the answer allows); many get corpus BLEU,
    which is not the mean of the sentences and is 0 while no answer has four tokens.  Both are divided by 100.
    """

    tokenizer: Literal["auto", "13a", "intl", "zh", "char", "none"] = "auto"
    """sacrebleu's tokenizer; auto takes zh (by character) when a reference has Chinese characters, else 13a."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return sentence BLEU / 100; a row without a reference scores 0.0."""
        from sacrebleu import sentence_bleu

        reference = conversation.reference()
        tokenizer = self._choose_tokenizer([reference])
        result = sentence_bleu(answer, [reference], tokenize=tokenizer)
        if not result.ref_len:
            return NO_REFERENCE
        shares = ", ".join(f"{share:.0f}%" for share in result.precisions)
        lengths = f"{result.sys_len} tokens, the reference has {result.ref_len}"
        return Score(as_share(result.score), f"precision of 1- to 4-grams {shares}; {lengths} (tokenizer {tokenizer})")

    def summary(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> float:
        """Return corpus BLEU / 100."""
        from sacrebleu import corpus_bleu

        references = [c.reference() for c, _ in zip(conversations, answers, strict=True)]
        if not references:
            return 0.0
        result = corpus_bleu(answers, [references], tokenize=self._choose_tokenizer(references))
        return as_share(result.score)

    def _choose_tokenizer(self, references: Sequence[str]) -> str:
        if self.tokenizer != "auto":
            return self.tokenizer
        return "zh" if any(re.search(HAN, reference) for reference in references) else "13a"
