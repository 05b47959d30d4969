"""Whether a tokenizer and the embedding of a model belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, highest: int) -> list[str]:
    """Return notices of tokens beyond the *rows* of the embedding; *highest* is the largest id that the data has.

    More rows than tokens are nothing unusual: they fill a matrix up to a size that is quick to compute.
    Raises :class:`UserError` where the data has a token without a row.
    """
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    if highest >= rows:
        token = next((token for index, token in beyond if index == highest), "?")
        raise UserError(
            f"model: its embedding has {rows} rows, but the tokenizer ({len(tokenizer)} tokens) gives token id "
            f"{highest}, {token!r}: it is not this model's tokenizer, or tokens were added to it and not to the model; "
            "take the model's own, and name tokens that it lacks in model.new_tokens"
        )
    if not beyond:
        return []
    return [
        f"the tokenizer has {len(beyond)} tokens without a row in the model's embedding, such as {beyond[0][1]!r} (id "
        f"{beyond[0][0]} of {rows} rows); no example has one"
    ]


def check_room(tokenizer: PreTrainedTokenizerBase, rows: int, added: int) -> None:
    """Raise :class:`UserError` where others of the tokenizer's tokens have no row, below those just *added* to it."""
    known = len(tokenizer) - added
    if known > rows:
        raise UserError(
            f"model.new_tokens: the tokenizer had {known} tokens already, but the model's embedding has {rows} rows: "
            f"the {known - rows} between would begin at random; use a tokenizer that fits the model"
        )
