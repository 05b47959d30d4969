"""What the user asks for: the recipe, how it is read, and what is wrong with it."""

from tunesmith.recipe.read import read_recipe
from tunesmith.recipe.schema import Recipe

__all__ = ["Recipe", "read_recipe"]
