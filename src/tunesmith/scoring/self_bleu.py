"""Self-BLEU, turned round: how little the answers resemble one another."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import EMPTY, Score, Scorer
from tunesmith.scoring._ngrams import units_of
from tunesmith.scoring._share import as_share


class SelfBleu(Scorer):
    """Give one minus self-BLEU (Zhu et al., arXiv:1802.01886), by sacrebleu: 1 for answers that share nothing.

    Many answers: the mean BLEU of each against all others as its references.  One answer: of its lines against one
    another.  By Chinese character and, in other scripts, word.
    """

    n: Annotated[int, Field(ge=1, le=4)] = 4
    """Longest n-gram."""

    most: Annotated[int, Field(ge=2)] = 100
    """Answers that are compared, evenly drawn; the time grows with their square."""

    def score(self, conversation: Conversation, answer: str) -> Score:  # noqa: ARG002
        """Return how little the lines of one answer resemble one another; one line scores 1.0."""
        lines = [line for line in answer.splitlines() if units_of(line)[0]]
        if not lines:
            return EMPTY
        if len(lines) == 1:
            return Score(1.0, "one line, nothing to compare it with")
        value = self._diversity(lines)
        return Score(value, f"self-BLEU of {len(lines)} lines {1 - value:.0%}")

    def summary(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> float:
        """Return one minus the mean BLEU of each answer against the others; 0 where there are not two."""
        texts = [answer for _, answer in zip(conversations, answers, strict=True)]
        return self._diversity(texts) if len(texts) > 1 else 0.0

    def _diversity(self, texts: Sequence[str]) -> float:
        from sacrebleu.metrics.bleu import BLEU

        step = max(1.0, len(texts) / self.most)
        drawn = [" ".join(units_of(texts[int(index * step)])[0]) for index in range(min(len(texts), self.most))]
        bleu: Any = BLEU(tokenize="none", effective_order=True, max_ngram_order=self.n)
        values = [
            as_share(bleu.sentence_score(text, drawn[:index] + drawn[index + 1 :]).score)
            for index, text in enumerate(drawn)
        ]
        return 1 - sum(values) / len(values)
