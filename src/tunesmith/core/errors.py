"""Every error a user can cause.  Anything else that escapes is our bug.

To add one: subclass :class:`UserError` only if a caller needs to tell it apart; otherwise raise ``UserError`` itself.
A message says what is wrong, which value was found, and what would be right.
"""

from dataclasses import asdict, dataclass


class UserError(Exception):
    """Something the user can fix: doors print it without a traceback and exit with 2."""


class UnknownNameError(UserError, ValueError):
    """A name that no plug-in has; a ``ValueError`` too, so that pydantic collects it."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what was asked: the setting, what is wrong, where it was written, what would be right."""

    path: str
    message: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        path = f"{self.path}: " if self.path else ""
        hint = f"\n    hint: {self.hint}" if self.hint else ""
        return f"{where}{path}{self.message}{hint}"


class RecipeError(UserError):
    """The recipe cannot work; carries every problem found, not just the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems

    def as_data(self) -> list[dict[str, str]]:
        """Return the problems as JSON-ready data, for the web doors."""
        return [asdict(problem) for problem in self.problems]


class DataError(UserError):
    """Rows of a data file that cannot be used; the message names file and line of each."""
