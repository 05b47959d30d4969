"""Show what a model would be trained on: a few records token by token, and all the counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.models.load import load_tokenizer
from tunesmith.run.prepare import open_data, prepare

if TYPE_CHECKING:
    from tunesmith.recipe.schema import Recipe


@dataclass(frozen=True)
class ShownToken:
    """One token: its id, the text it stands for, and the weight of predicting it."""

    id: int
    text: str
    weight: float


@dataclass(frozen=True)
class Inspection:
    """Counts of the whole data, and the first records as their tokens."""

    counts: dict[str, Any]
    notices: list[str]
    records: list[tuple[str, list[list[ShownToken]]]]
    """Origin and sequences of each record shown."""


def inspect(recipe: Recipe, records: int = 3) -> Inspection:
    """Return the inspection of the first *records* training examples of *recipe*."""
    data = open_data(recipe)
    tokenizer = load_tokenizer(recipe.model, data.texts)
    prepared = prepare(recipe, data, tokenizer)
    shown = [
        (str(e.origin), [_tokens(s.tokens.tolist(), s.weight.tolist(), tokenizer) for s in e.sequences])
        for e in prepared.train.examples[:records]
    ]
    return Inspection(prepared.as_data(), prepared.notices, shown)


def _tokens(ids: list[int], weights: list[float], tokenizer: Any) -> list[ShownToken]:
    """Give each token the text it adds; a character of several tokens is shown at its last one."""
    out, done = [], ""
    for index, (token, weight) in enumerate(zip(ids, weights, strict=True)):
        text = tokenizer.decode(ids[: index + 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd")
        out.append(ShownToken(token, text[len(done) :] if whole else "", weight))
        done = text if whole else done
    return out
