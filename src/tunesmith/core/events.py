"""What a running use case tells whoever listens: plain dictionaries with a ``kind``.

Kinds: ``notice`` (text) · ``begin`` (steps, examples) · ``step`` (step, loss, learning_rate, tokens_per_second, …) ·
``evaluation`` (step, loss) · ``checkpoint`` (step, path) · ``end`` (step, reason) · ``progress`` (task, done, total) ·
``samples`` (step, rows: answers that a step learns from) · ``alarm`` (step, text: a way to cheat was seen in them).
"""

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
