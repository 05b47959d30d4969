"""What there is to choose from, read from the plug-ins and the recipe's own schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tunesmith.core.errors import UserError
from tunesmith.core.registry import Registry, Spec, suggest
from tunesmith.data.formats import FORMATS
from tunesmith.methods import METHODS
from tunesmith.models.quantization import QUANTIZATIONS
from tunesmith.optimizers import OPTIMIZERS
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring import SCORERS
from tunesmith.stages import STAGES
from tunesmith.templates.library import read_template, template_names

if TYPE_CHECKING:
    from collections.abc import Iterator

REGISTRIES: dict[str, Registry[Any]] = {
    "methods": METHODS,
    "stages": STAGES,
    "optimizers": OPTIMIZERS,
    "quantizations": QUANTIZATIONS,
    "formats": FORMATS,
    "scores": SCORERS,
}


def catalogue(kind: str | None = None) -> dict[str, dict[str, str]]:
    """Return kind -> name -> one line about it, for one *kind* or all; raise :class:`UserError` for an unknown one."""
    kinds = [*REGISTRIES, "templates", "settings"]
    if kind is not None and kind not in kinds:
        raise UserError(f"there is no list of {kind!r}{suggest(kind, kinds)}; there are {', '.join(kinds)}")
    return {name: _entries(name) for name in ([kind] if kind else kinds)}


def _entries(kind: str) -> dict[str, str]:
    if kind == "templates":
        own = {"auto": "The template that comes with the tokenizer: the right one for every model that has one."}
        return own | {name: read_template(name).summary for name in template_names()}
    if kind == "settings":
        return {path: text for path, text, _ in settings(Recipe)}
    return REGISTRIES[kind].summaries()


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
    return "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _block(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _block(a))), None)
