"""From a recipe's data to examples, with every row accounted for."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.core.errors import DataError, UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.data.read import count_shared, read_sources
from tunesmith.models.load import load_stop_ids
from tunesmith.run.base_template import choose_template
from tunesmith.run.example_cache import ExampleCache
from tunesmith.run.make_examples import Made, Maker, make_examples
from tunesmith.run.prepared import Prepared, Split
from tunesmith.templates.chat import ChatTemplate
from tunesmith.templates.notes import describe_notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.conversation import Conversation
    from tunesmith.data.read import DataRead
    from tunesmith.recipe.schema import Recipe

_WORTH_KEEPING = 1.0  # seconds that examples must have taken to make: what is made faster is made again


@dataclass(frozen=True)
class ReadData:
    """Conversations as read, before there is a tokenizer."""

    train: DataRead
    validation: DataRead | None
    train_conversations: list[Conversation]
    validation_conversations: list[Conversation]

    def texts(self) -> Iterator[str]:
        """Yield every training text, for a tokenizer made from it."""
        for conversation in self.train_conversations:
            if conversation.text is not None:
                yield conversation.text
            for message in (*conversation.messages, *conversation.rejected):
                yield message.content


def read_data(recipe: Recipe) -> ReadData:
    """Read the recipe's files and hold out what it asks for; raise :class:`DataError` for rows that cannot be used."""
    data = recipe.data
    train = read_sources(data.train, bad_rows=data.bad_rows, at="data.train")
    if data.validation:
        validation = read_sources(data.validation, bad_rows=data.bad_rows, at="data.validation")
        return ReadData(train, validation, train.conversations, validation.conversations)
    count = round(len(train.conversations) * data.validation_share)
    if data.validation_share and not count:
        raise UserError(
            f"data.validation_share: {data.validation_share} of {len(train.conversations)} conversations is none"
        )
    order = np.random.default_rng(recipe.seed).permutation(len(train.conversations))
    held = {int(i) for i in order[:count]}
    kept = [c for i, c in enumerate(train.conversations) if i not in held]
    return ReadData(train, None, kept, [c for i, c in enumerate(train.conversations) if i in held])


@dataclass(frozen=True)
class RecipeData:
    """A recipe's data: read at most once, and not at all where examples made of it are kept."""

    recipe: Recipe
    cache: ExampleCache

    @cached_property
    def read(self) -> ReadData:
        """The conversations; raises :class:`DataError` for rows that cannot be used."""
        return read_data(self.recipe)

    def texts(self) -> Iterator[str]:
        """Yield every training text, for a tokenizer made from it."""
        return self.read.texts()


def open_data(recipe: Recipe) -> RecipeData:
    """Return the recipe's data; raise :class:`DataError` for rows that cannot be used, before anything else is done."""
    data = RecipeData(recipe, ExampleCache(recipe))
    if not data.cache.has_examples:  # else these very rows were read before, without a fault
        _ = data.read
    return data


def prepare(
    recipe: Recipe,
    data: RecipeData,
    tokenizer: PreTrainedTokenizerBase,
    listener: Listener = ignore,
    *,
    own_files: bool = True,
) -> Prepared:
    """Turn the data into examples, or take those that are kept; raise :class:`DataError` where nothing is to learn.

    Without *own_files* the model is known by its shape alone, and nobody is asked at what it stops.
    """
    chosen = choose_template(recipe, tokenizer)
    template = ChatTemplate(tokenizer, chosen.name, recipe.template.arguments, recipe.template.lost)
    template.add_stop_ids(load_stop_ids(recipe.model) if own_files else [])
    prepared = data.cache.load(template)
    if prepared is None:
        began = time.monotonic()
        prepared = _make(recipe, data.read, template, listener)
        prepared = data.cache.keep(prepared) if time.monotonic() - began > _WORTH_KEEPING else prepared
    return replace(prepared, notices=[*chosen.notices, *prepared.notices])


def _make(recipe: Recipe, data: ReadData, template: ChatTemplate, listener: Listener) -> Prepared:
    maker = Maker(recipe.stage, template, recipe.data.max_tokens, recipe.data.too_long)
    made = make_examples(maker, data.train_conversations, listener)
    train = _split(recipe, made, data.train_conversations, data.train)
    if not train.examples:
        raise DataError(
            f"nothing to learn: none of {len(data.train_conversations)} conversations has a trained token within "
            f"data.max_tokens = {recipe.data.max_tokens}"
        )
    notices = describe_notes(made.notes)
    held = data.validation_conversations
    validation = _split(recipe, make_examples(maker, held, listener), held, data.validation) if held else None
    if shared := count_shared(held, data.train_conversations):
        notices.append(
            f"{shared} of {len(held)} validation conversations are also in the training data: "
            "loss and scores will look better than on new ones"
        )
    for name, split in (("training", train), ("validation", validation)):
        notices += _losses(name, split, recipe)
    sources = [source for read in (data.train, data.validation) if read for source in read.sources]
    return Prepared(
        template=template,
        train=train,
        validation=validation,
        held_out=held,
        files=[{"path": f.file, "sha256": f.sha256, "rows": f.rows} for source in sources for f in source.files],
        notices=notices,
    )


def _losses(name: str, split: Split | None, recipe: Recipe) -> list[str]:
    if split is None:
        return []
    said = {
        "truncated": f"answers lost their end at data.max_tokens = {recipe.data.max_tokens}: raise it, or drop them "
        "with data.too_long: drop",
        "dropped": f"conversations were dropped: no trained token within data.max_tokens = {recipe.data.max_tokens}",
        "bad_rows": "rows could not be read and were skipped",
    }
    return [f"{split.counts[key]} {name} {text}" for key, text in said.items() if split.counts[key]]


def _split(recipe: Recipe, made: Made, conversations: list[Conversation], read: DataRead | None) -> Split:
    if made.too_long:
        shown = "\n".join(made.too_long[:10])
        raise DataError(
            f"{shown}\n{len(made.too_long)} conversations are longer than data.max_tokens = {recipe.data.max_tokens}; "
            "raise it, or set data.too_long"
        )
    counts = {
        "rows": read.rows if read else len(conversations),
        "conversations": len(conversations),
        "examples": len(made.examples),
        "tokens": len(made.examples.tokens),
        "trained_tokens": made.examples.trained_tokens,
        "longest": made.examples.longest,
        "truncated": made.truncated,
        "dropped": made.dropped,
        "bad_rows": len(read.bad) if read else 0,
        "duplicates": read.duplicates if read else 0,
        **made.special_tokens,
    }
    return Split(made.examples, counts)
