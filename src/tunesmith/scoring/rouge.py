"""ROUGE: how much of the reference the answer covers, and the other way round (by characters for Chinese)."""

from typing import Literal

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import NO_REFERENCE, Score, Scorer
from tunesmith.scoring._text import UNIT


class Rouge(Scorer):
    """F-measure of what answer and reference share (Lin 2004), by rouge_score without stemming."""

    variant: Literal["rouge1", "rouge2", "rougeL"] = "rougeL"
    """What is shared: rouge1 words, rouge2 pairs of words, rougeL the longest common subsequence."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return the F-measure; a row without a reference scores 0.0."""
        from rouge_score.rouge_scorer import RougeScorer

        tokenizer = WordAndCharacterTokenizer()
        reference = conversation.reference()
        if not tokenizer.tokenize(reference):
            return NO_REFERENCE
        result = RougeScorer([self.variant], tokenizer=tokenizer).score(reference, answer)[self.variant]
        return Score(float(result.fmeasure), f"precision {result.precision:.0%}, recall {result.recall:.0%}")


class WordAndCharacterTokenizer:
    """Lower-case words, and Chinese characters and kana one by one.

    English gives what rouge_score's own tokenizer gives; that one throws away whatever is not a-z and 0-9.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of *text*; the method that RougeScorer calls."""
        return UNIT.findall(text.lower())
