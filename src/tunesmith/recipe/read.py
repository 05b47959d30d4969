"""Read a recipe from YAML and ``path=value`` overrides; say everything that is wrong with it at once."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.core.errors import Problem, RecipeError
from tunesmith.recipe.document import Document, read_document
from tunesmith.recipe.explain import explain
from tunesmith.recipe.schema import Recipe, check_blocks


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe at *path* with *overrides* applied; raise :class:`RecipeError` with every problem at once."""
    document = read_document(path)
    for override in overrides:
        document.apply(override)
    return check_document(document)


def recipe_from_values(values: dict[str, Any], where: str = "the recipe") -> Recipe:
    """Return the recipe that *values* (a form, a run's file, another program) describe, checked the same way."""
    return check_document(Document(values, {(): where}))


def check_document(document: Document) -> Recipe:
    """Return the recipe that *document* is; raise :class:`RecipeError` with every problem at once."""
    problems = list(document.problems)
    try:
        recipe = Recipe.model_validate(document.values)
    except ValidationError as error:
        problems += explain(error.errors(), document)
        found: Iterable[Problem] = check_blocks(document.values)
    else:
        found = recipe.check()
    for problem in found:
        where = problem.where or document.origin(tuple(problem.path.split(".")))
        problems.append(Problem(problem.path, problem.message, where, problem.hint))
    if problems:
        raise RecipeError(_in_order(problems, document))
    return recipe


def _in_order(problems: list[Problem], document: Document) -> list[Problem]:
    """Return *problems* as one meets them in the file, those of overrides last."""
    places = list(document.origins.values())
    return sorted(problems, key=lambda problem: places.index(problem.where) if problem.where in places else len(places))
