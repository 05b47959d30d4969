"""Which template a run renders with: the one it names, the tokenizer's own, or that of a base model's family."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tunesmith.core.errors import UserError
from tunesmith.models.families import family_of
from tunesmith.templates.library import read_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.recipe.schema import Recipe


class Chosen(NamedTuple):
    """A template's name, and what is to be said of it."""

    name: str
    notices: tuple[str, ...] = ()


def choose_template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Chosen:
    """Return the template of *recipe*; raise :class:`UserError` where its turns end with what is no token.

    For ``auto`` that is the tokenizer's own; for a base model that has none, what the table of families names.
    """
    name, notices = recipe.template.name, []
    family = family_of(recipe.model.path) if recipe.model.path is not None else None
    if name == "auto":
        chats = tokenizer.chat_template is None and recipe.stage.type_name() != "pretrain"
        if not chats or family is None or not family.template:
            return Chosen(name)
        name = family.template
        notices.append(
            f"template: {name}, because the tokenizer has no chat template and this is the one for base models of the "
            f"family {family.name}"
        )
    template = read_template(name)
    missing = template.missing_marks(tokenizer)
    if missing:
        advice = f"model.new_tokens: [{', '.join(map(repr, missing))}]"
        ends = [token for token in template.stop if token in missing]
        if ends:
            raise UserError(
                f"template.name: {name} ends turns with {ends[0]}, which is no token of this tokenizer; add it, with "
                f"{advice}, or use a template of plain text, such as template: alpaca"
            )
        if family is not None and family.template == name:
            return Chosen(name, tuple(notices))  # its models never had them
        notices.append(
            f"template: {name} writes {', '.join(missing)}, which the tokenizer spells with several tokens each; "
            f"{advice} would make each of them one"
        )
    return Chosen(name, tuple(notices))
