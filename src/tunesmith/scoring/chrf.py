"""chrF: how many character sequences answer and reference share; needs no word boundaries."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import NO_REFERENCE, Score, Scorer
from tunesmith.scoring._share import as_share


class Chrf(Scorer):
    """F-score of character n-grams up to six, recall counting twice (Popović 2015), by sacrebleu, divided by 100.

    Many answers get the corpus score, which sums n-grams first and is not the mean of the sentences.
    """

    word_order: Annotated[int, Field(ge=0, le=4)] = 0
    """Longest word n-gram counted beside the characters; 2 makes it chrF++, 0 suits Chinese."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return sentence chrF / 100; a row without a reference scores 0.0."""
        from sacrebleu import sentence_chrf

        reference = conversation.reference()
        if not reference.strip():
            return NO_REFERENCE
        value = sentence_chrf(answer, [reference], word_order=self.word_order).score
        return Score(as_share(value), f"{value:.1f}% agreement in character sequences")

    def summary(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> float:
        """Return corpus chrF / 100."""
        from sacrebleu import corpus_chrf

        references = [c.reference() for c, _ in zip(conversations, answers, strict=True)]
        if not references:
            return 0.0
        return as_share(corpus_chrf(answers, [references], word_order=self.word_order).score)
