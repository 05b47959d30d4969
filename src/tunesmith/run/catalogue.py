"""What there is to choose from, read from the plug-ins and the recipe's own schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tunesmith.core.errors import UserError
from tunesmith.core.registry import Registry, Spec, suggest
from tunesmith.data.cleaning import CLEANERS
from tunesmith.data.formats import FORMATS
from tunesmith.generation.constraints import CONSTRAINTS
from tunesmith.methods import METHODS
from tunesmith.models.families import families, short_names, size_of
from tunesmith.models.quantization import QUANTIZATIONS
from tunesmith.optimizers import OPTIMIZERS
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring import SCORERS
from tunesmith.stages import STAGES
from tunesmith.templates.library import read_template, template_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.models.families import Family

REGISTRIES: dict[str, Registry[Any]] = {
    "methods": METHODS,
    "stages": STAGES,
    "optimizers": OPTIMIZERS,
    "quantizations": QUANTIZATIONS,
    "formats": FORMATS,
    "scores": SCORERS,
    "constraints": CONSTRAINTS,
    "cleaners": CLEANERS,
}


def catalogue(kind: str | None = None, word: str = "") -> dict[str, dict[str, str]]:
    """Return kind -> name -> one line about it, for one *kind* or all but the models, which are many.

    With a *word*, only what holds it, in its name or its line; of models, each by itself instead of their families.
    Raises :class:`UserError` for an unknown kind, and where nothing holds the word.
    """
    kinds = [*REGISTRIES, "templates", "settings", "models"]
    if kind is not None and kind not in kinds:
        raise UserError(f"there is no list of {kind!r}{suggest(kind, kinds)}; there are {', '.join(kinds)}")
    if kind == "models":
        found = _models_with(word) if word else {family.name: _family_line(family) for family in families()}
        near = suggest(word, [*short_names(), *(family.name for family in families())])
    else:
        lists = {name: _entries(name) for name in ([kind] if kind else kinds[:-1])}
        if not word:
            return lists
        found, near = {}, ""
        held = {
            name: {key: text for key, text in entries.items() if word.lower() in f"{key} {text}".lower()}
            for name, entries in lists.items()
        }
        if any(held.values()):
            return {name: entries for name, entries in held.items() if entries}
    if not found:
        raise UserError(f"nothing among the {kind or 'names'} holds {word!r}{near}")
    return {"models": found}


def _family_line(family: Family) -> str:
    """Return what a family is, in one line."""
    kinds = [kind for kind, names in (("base", family.base), ("chat", family.chat)) if names]
    return "; ".join(filter(None, (" ".join(family.sizes), " and ".join(kinds), *_facts(family))))


def _facts(family: Family) -> list[str]:
    """Return what is true of all models of a family, where it is known."""
    return [
        f"{family.model_type}{' (code comes with it)' if family.remote_code else ''}",
        "multimodal" if family.multimodal else "",
        f"template for base models: {family.template}" if family.template else "",
        f"{family.context:,} tokens" if family.context else "",
        f"LoRA needs method.exclude: {family.lora_exclude}" if family.lora_exclude else "",
        f"licence: {family.licence}" if family.licence else "",
    ]


def _models_with(word: str) -> dict[str, str]:
    """Return Hub name -> one line, of each model whose name, family or architecture holds *word*."""
    found = {}
    for family in families():
        for model in family.models:
            if word.lower() in f"{model} {family.name} {family.model_type} {size_of(model)}".lower():
                kind = "base" if model in family.base else "chat"
                there = family.on_modelscope(model)
                other = "" if there == model else f"ModelScope: {there or 'not known'}"
                line = (size_of(model), kind, family.name, *_facts(family), other)
                found[model] = "; ".join(filter(None, line))
    return found


def _entries(kind: str) -> dict[str, str]:
    if kind == "templates":
        own = {"auto": "The template that comes with the tokenizer: the right one for every model that has one."}
        return own | {name: read_template(name).summary for name in template_names()}
    if kind == "settings":
        return {path: text for path, text, _ in settings(Recipe)}
    found = REGISTRIES[kind].summaries()
    return {name: f"{text}{_missing(name)}" for name, text in found.items()} if kind == "quantizations" else found


def _missing(quantization: str) -> str:
    """Return what is to be installed for a *quantization*; nothing where it is there."""
    hints = [problem.hint for problem in QUANTIZATIONS.get(quantization)().check_installed()]
    return f" Not here: {'; '.join(hints)}." if hints else ""


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (path, description, default) of every setting in a block and the blocks inside it."""
    for name, field in model.model_fields.items():
        inner = _block(field.annotation)
        text = field.description or (inner and (inner.__doc__ or "").partition("\n")[0]) or ""
        yield f"{prefix}{name}", text, default_text(field)
        if inner is not None and not issubclass(inner, Spec):
            yield from settings(inner, f"{prefix}{name}.")


def default_text(field: Any) -> str:
    """Return a field's default as a user would write it; empty for a required one and for groups."""
    default = field.default
    if field.default_factory is not None:
        default = field.default_factory()
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Spec):
        return default.type_name()
    if isinstance(default, BaseModel):
        return ""
    if isinstance(default, str) and not default.isprintable():
        return json.dumps(default, ensure_ascii=False)  # a line break, as it is written in a recipe
    return "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _block(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _block(a))), None)
