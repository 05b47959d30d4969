"""Put a recipe's method on its model: a new adapter, or the one that goes on training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.models.fingerprint import check_base
from tunesmith.models.hub import name_notices
from tunesmith.models.load import find_model, load_tokenizer
from tunesmith.models.new_tokens import check_trained

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.methods import Method
    from tunesmith.recipe.schema import Recipe


def apply_method(recipe: Recipe, base: Any) -> Any:
    """Return *base* ready for training; raise :class:`UserError` where the method, or the adapter, does not fit it."""
    if recipe.model.new_tokens:
        model = _with_new_rows(recipe).apply(base)
        check_trained(recipe.method.base_model(model), recipe.model.new_tokens)
        return model
    if recipe.model.adapter == "merge":
        return recipe.method.apply(base)
    assert recipe.model.path is not None
    place = find_model(recipe.model.path, recipe.model.hub)
    assert place.adapter is not None
    check_base(place.adapter, Path(place.below.weights))
    return recipe.method.go_on(base, place.adapter)


def _with_new_rows(recipe: Recipe) -> Method:
    """Return the recipe's method, training the rows of new tokens where it can train single rows."""
    method: Any = recipe.method
    if "trained_tokens" not in type(method).model_fields or method.modules_to_save:
        return recipe.method
    tokenizer: Any = load_tokenizer(recipe.model, tuple)  # there is a path, so no text is asked for
    ids = tokenizer.convert_tokens_to_ids(list(recipe.model.new_tokens))
    return recipe.method.model_copy(update={"trained_tokens": sorted({*method.trained_tokens, *ids})})


def start_notices(recipe: Recipe) -> Iterator[str]:
    """Yield what a short name stands for, which adapters become part of the base, and the one that goes on."""
    if recipe.model.path is None:
        return
    yield from name_notices(recipe.model.path, recipe.model.hub)
    place = find_model(recipe.model.path, "huggingface")
    goes_on = recipe.model.adapter == "continue"
    merged = place.below.adapters if goes_on else place.adapters
    if merged:
        names = ", then ".join(map(str, merged))
        yield f"model: {place.base} with {names} merged into its weights"
    if goes_on:
        yield f"model.adapter: {place.adapter} itself goes on training; what the recipe leaves out is as it has it"
