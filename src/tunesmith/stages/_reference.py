"""The model that preferences are measured against: which it may be, and what is wrong with the one asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import Problem
from tunesmith.models.schema import Model

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = ("start", "base", "none")


def check_reference(reference: str, recipe: Any) -> Iterable[Problem]:
    """Yield why *reference* cannot be what ``stage.reference`` of *recipe* says."""
    path = "stage.reference"
    if reference == "base" and not (recipe.method.adds_adapter and recipe.method.keeps_base):
        why = f"{recipe.method.type_name()} has no adapter that could be switched off to leave the base"
        yield Problem(path, why, hint="use start, or the path of a model")
    elif reference not in NAMES:
        for found in Model(path=reference).check():
            yield Problem(path, found.message, hint=found.hint or f"name a model, or one of {', '.join(NAMES)}")
