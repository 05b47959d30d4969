"""From a recipe's data to examples, with every row accounted for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import DataError, UserError
from tunesmith.data.read import count_shared, read_sources
from tunesmith.models.load import load_stop_ids
from tunesmith.stages import Example
from tunesmith.templates.chat import ChatTemplate, special_token_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.conversation import Conversation
    from tunesmith.data.read import DataRead
    from tunesmith.recipe.schema import Recipe


@dataclass(frozen=True)
class Split:
    """Training or validation data: the conversations, what they became, and what was lost on the way."""

    conversations: list[Conversation]
    examples: list[Example]
    counts: dict[str, int]


@dataclass(frozen=True)
class Prepared:
    """Everything a run reads."""

    train: Split
    validation: Split | None
    files: list[dict[str, Any]]
    template: ChatTemplate
    notices: list[str] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """Return the counts as JSON-ready data."""
        return {"train": self.train.counts, "validation": self.validation and self.validation.counts}


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
            for message in conversation.messages:
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


def prepare(recipe: Recipe, data: ReadData, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Turn what was read into examples; raise :class:`DataError` where nothing is left to learn."""
    template = ChatTemplate(tokenizer, recipe.template.name, recipe.template.arguments)
    template.add_stop_ids(load_stop_ids(recipe.model))
    train = _split(recipe, template, data.train_conversations, data.train)
    if not train.examples:
        raise DataError(
            f"nothing to learn: none of {len(data.train_conversations)} conversations has a trained token within "
            f"data.max_tokens = {recipe.data.max_tokens}"
        )
    notices = []
    if template.ends_added:
        notices.append(
            f"the template does not end {template.ends_added} answers: the end token was added, so that the model "
            "learns to stop"
        )
    if template.reasoning_dropped:
        notices.append(
            f"the template does not write the reasoning of {template.reasoning_dropped} answers: it is not learnt"
        )
    held = data.validation_conversations
    validation = _split(recipe, template, held, data.validation) if held else None
    if shared := count_shared(held, data.train_conversations):
        notices.append(
            f"{shared} of {len(held)} validation conversations are also in the training data: "
            "loss and scores will look better than on new ones"
        )
    for name, split in (("training", train), ("validation", validation)):
        notices += _losses(name, split, recipe)
    sources = [source for read in (data.train, data.validation) if read for source in read.sources]
    files = [{"path": f.file, "sha256": f.sha256, "rows": f.rows} for source in sources for f in source.files]
    return Prepared(train, validation, files, template, notices)


def _losses(name: str, split: Split | None, recipe: Recipe) -> list[str]:
    if split is None:
        return []
    said = {
        "truncated": f"answers lost their end at data.max_tokens = {recipe.data.max_tokens}",
        "dropped": f"conversations were dropped: no trained token within data.max_tokens = {recipe.data.max_tokens}",
        "bad_rows": "rows could not be read and were skipped",
    }
    return [f"{split.counts[key]} {name} {text}" for key, text in said.items() if split.counts[key]]


def _split(
    recipe: Recipe, template: ChatTemplate, conversations: Sequence[Conversation], read: DataRead | None
) -> Split:
    limit = recipe.data.max_tokens
    made = recipe.stage.examples(conversations, template, limit)
    examples: list[Example] = []
    truncated = dropped = 0
    too_long = []
    for each, conversation in zip(made, conversations, strict=True):
        lost = not each
        for example in each:
            longest = max(map(len, example.sequences), default=0)
            if longest > limit:
                too_long.append(f"{conversation.origin}: {longest} tokens")
            kept = _cut(example, limit, recipe.data.too_long)
            truncated += kept is not None and longest > limit
            lost = lost or kept is None
            if kept is not None:
                examples.append(kept)
        dropped += lost
    if too_long and recipe.data.too_long == "refuse":
        shown = "\n".join(too_long[:10])
        raise DataError(
            f"{shown}\n{len(too_long)} conversations are longer than data.max_tokens = {limit}; "
            "raise it, or set data.too_long"
        )
    sequences = [s for e in examples for s in e.sequences]
    counts = {
        "rows": read.rows if read else len(conversations),
        "conversations": len(conversations),
        "examples": len(examples),
        "tokens": sum(map(len, sequences)),
        "trained_tokens": sum(s.trained for s in sequences),
        "longest": max(map(len, sequences), default=0),
        "truncated": truncated,
        "dropped": dropped,
        "bad_rows": len(read.bad) if read else 0,
        "duplicates": read.duplicates if read else 0,
        **special_token_counts(sequences, template.tokenizer),
    }
    return Split(list(conversations), examples, counts)


def _cut(example: Example, limit: int, too_long: str) -> Example | None:
    """Return what of *example* is trained, within *limit* tokens; None where nothing is left."""
    if too_long == "drop" and any(len(s) > limit for s in example.sequences):
        return None
    cut = tuple(s.cut(limit) for s in example.sequences)
    if not cut or any(s.trained == 0 for s in cut):
        return None
    return Example(cut, example.origin, example.values)
