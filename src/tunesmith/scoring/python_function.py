"""Python function: a score that you wrote, named by its module or file."""

import ast
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from tunesmith.core.errors import Problem, UserError
from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import Score, Scorer
from tunesmith.scoring._given import as_score


def _check_path(path: str) -> str:
    place, colon, name = path.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(f"{path!r} should be module:function or file.py:function")
    return path


class PythonFunction(Scorer):
    """Call ``function(conversation, answer)``, which gives a number from 0 to 1, or such a number and why.

    ``conversation.prompt()`` are the messages that were asked, ``conversation.reference()`` is the answer that the data
    has.  The code is run only where a recipe or command names it.
    """

    path: Annotated[str, AfterValidator(_check_path)]
    """``module:function``, or ``file.py:function`` with the file's path as seen from where tunesmith is started."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield that the file or module is not there, or has no such function; nothing is run."""
        place, _, name = self.path.rpartition(":")
        at = f"{self.path_in(recipe)}.path"
        if place.endswith(".py"):
            file = Path(place).expanduser()
            if not file.is_file():
                yield Problem(at, f"no such file: {file}")
            elif name not in (known := _names_in(file)):
                yield Problem(at, f"{file} has no {name}; it has {', '.join(known)}")
        elif importlib.util.find_spec(place.partition(".")[0]) is None:
            hint = "install it, or name a file: rewards.py:function"
            yield Problem(at, f"no module {place}", hint=hint)

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return what the function gives; raise :class:`UserError` for anything but a number from 0 to 1."""
        return as_score(self._function(conversation, answer), self.path)

    @cached_property
    def _function(self) -> Callable[[Conversation, str], Any]:
        place, _, name = self.path.rpartition(":")
        if place.endswith(".py"):
            file = Path(place).expanduser()
            if not file.is_file():
                raise UserError(f"python_function: no such file: {file}")
            spec = importlib.util.spec_from_file_location(file.stem, file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        function = vars(module).get(name)
        if not callable(function):
            raise UserError(f"python_function: {place} has no function {name}")
        return function  # type: ignore[no-any-return]


def _names_in(file: Path) -> list[str]:
    """Return what a file defines or imports at its top, without running it; nothing where it is no Python."""
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return []
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return names
