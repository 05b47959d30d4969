"""How good an answer is: one file per score, used as metric, reward and filter alike."""

from tunesmith.core.registry import Registry
from tunesmith.scoring._base import Judge, Score, Scorer, Span, prepare_scores

SCORERS = Registry("score", "tunesmith.scoring", Scorer)

__all__ = ["SCORERS", "Judge", "Score", "Scorer", "Span", "prepare_scores"]
