"""A score that came from outside: a user's function, or an endpoint."""

import math
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.scoring._base import Score


def as_score(value: Any, source: str) -> Score:
    """Return what *source* gave, a number or a pair of number and reason; raise :class:`UserError` for all else."""
    if isinstance(value, Score):
        number, why, spans = value
    elif isinstance(value, tuple | list) and len(value) == 2:
        number, why, spans = value[0], str(value[1]), ()
    else:
        number, why, spans = value, "", ()
    if isinstance(number, bool):
        number = float(number)
    if not isinstance(number, int | float) or not math.isfinite(number) or not 0 <= number <= 1:
        raise UserError(
            f"{source} gave {str(value)[:200]!r}; a score is a number from 0 to 1, or such a number and why"
        )
    return Score(float(number), why or f"given by {source}", spans)
