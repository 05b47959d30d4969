"""Supervised fine-tuning: learn the assistant's turns, given everything before them."""

from tunesmith.stages._imitation import AbstractImitation
from tunesmith.stages._likelihood import AbstractLikelihood


class SFT(AbstractImitation, AbstractLikelihood):
    """Imitate the answers in the data."""
