"""What must be so before an answer is held to a constraint: the tokenizer can write it, and there is room for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import Problem, UserError
from tunesmith.generation.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.data.conversation import Conversation
    from tunesmith.generation.constraints import Walk
    from tunesmith.generation.settings import Generation


def check_constraint(settings: Generation, tokenizer: Any, path: str) -> Iterator[Problem]:
    """Yield why answers written with *tokenizer* cannot be held to the constraint of *settings*, which is at *path*."""
    if settings.constraint is None:
        return
    try:
        vocabulary = Vocabulary.of(tokenizer)
    except UserError as error:
        yield Problem(path, str(error))
        return
    for problem in settings.constraint.check_vocabulary(vocabulary, settings.max_new_tokens):
        yield replace(problem, path=f"{path}.{problem.path}" if problem.path else path)


def start_walk(
    settings: Generation, tokenizer: Any, conversation: Conversation | None, *, seed: int, most: int
) -> Walk:
    """Return the walk that an answer of at most *most* tokens starts from; *settings* have a constraint.

    Raises :class:`UserError` where the tokenizer cannot write the form, or where the end might be cut off.
    """
    assert settings.constraint is not None
    walk = settings.constraint.start(Vocabulary.of(tokenizer), conversation, seed)
    if walk.longest is not None and walk.longest > most:
        raise UserError(
            f"constraint: an answer may take {walk.longest} tokens, and it ends after {most}: set max_new_tokens: "
            f"{walk.longest} or more where the model's context has room (it ends by itself when it is complete)"
        )
    return walk
