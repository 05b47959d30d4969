"""What a run starts from: the tokenizer and the configuration, or the known shape where the Hub cannot be reached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.models.known_shapes import known_config, known_name
from tunesmith.models.load import can_be_read, load_config, load_tokenizer
from tunesmith.models.new_tokenizer import make_tokenizer
from tunesmith.models.schema import NewTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.prepare import RecipeData
    from tunesmith.run.prepared import Prepared

# a byte-level tokenizer of so many tokens, made from the data, cuts verse, prose and code in 0.94 to 1.08 times as many
# tokens as Qwen's own does (couplets and Chinese prose of shared/data, English and Python of this repository)
_STAND_IN = NewTokenizer(kind="bpe", vocabulary_size=4000)
_TEXTS = 20_000


@dataclass(frozen=True)
class Start:
    """What a run starts from."""

    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    notice: str = ""
    """That the model's own files could not be read, and what stands in for them; empty where they could."""

    def tell(self, prepared: Prepared) -> Prepared:
        """Return *prepared* with the notice."""
        return replace(prepared, notices=[self.notice, *prepared.notices]) if self.notice else prepared


def load_start(recipe: Recipe, data: RecipeData, *, shape_will_do: bool = False) -> Start:
    """Return tokenizer and configuration; raise :class:`UserError` where they cannot be had.

    If *shape_will_do*, a well-known model whose files cannot be reached is planned from its known shape.
    """
    path = recipe.model.path
    name = known_name(path) if shape_will_do and path is not None and not Path(path).exists() else None
    if name is None or path is None or can_be_read(path):
        try:
            tokenizer = load_tokenizer(recipe.model, data.texts)
            return Start(tokenizer, load_config(recipe.model, tokenizer))
        except UserError:
            if name is None:
                raise
    config = known_config(name)
    tokenizer = make_tokenizer(_STAND_IN, islice(data.texts(), _TEXTS))
    notice = (
        f"model: {path} cannot be read from here, so this is planned from the known shape of {name}: memory is right; "
        "lengths are those of a tokenizer made from the data, which may be off by a fifth, and of a plain template"
    )
    return Start(tokenizer, config, notice)
