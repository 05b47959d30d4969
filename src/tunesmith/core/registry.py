"""One registry for every kind of plug-in: the file name is the public name.

``Registry("method", "tunesmith.methods", Method)`` resolves ``lora`` by importing ``tunesmith/methods/lora.py`` and
taking the one ``Method`` defined there, so adding a built-in is adding a file.  Other distributions add names through
the entry-point group ``tunesmith.method``.
"""

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from tunesmith.core.errors import Problem, UnknownNameError


class Block(BaseModel):
    """A group of settings: unknown keys are errors, values cannot change, attribute docstrings describe them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Spec(Block):
    """A plug-in: a typed block of a recipe that knows how to do what it describes."""

    @classmethod
    def type_name(cls) -> str:
        """Return the public name: the file this class is defined in."""
        return cls.__module__.rpartition(".")[2]

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield what this plug-in cannot work with in *recipe*; paths are relative to the recipe's root."""
        return ()

    @model_serializer(mode="wrap")
    def _with_type(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"type": self.type_name(), **handler(self)}


S = TypeVar("S", bound=Spec)


class Registry(Generic[S]):
    """Maps names to :class:`Spec` classes, importing each only when it is named."""

    def __init__(self, kind: str, package: str, base: type[S]) -> None:
        self.kind, self.package, self.base = kind, package, base

    def names(self) -> list[str]:
        """Return every known name, without importing any plug-in."""
        return sorted({m.name for m in self._files()} | {e.name for e in self._entry_points()})

    def get(self, name: str) -> type[S]:
        """Return the class called *name*; raise :class:`UnknownNameError` that says which names exist."""
        if name not in (names := self.names()):
            raise UnknownNameError(f"unknown {self.kind} {name!r}{suggest(name, names)}; have {', '.join(names)}")
        for entry in self._entry_points():
            if entry.name == name:
                return cast("type[S]", entry.load())
        module = importlib.import_module(f"{self.package}.{name}")
        (cls,) = (v for v in vars(module).values() if self._is_plugin(v, module.__name__))
        return cast("type[S]", cls)

    def parse(self, value: Any) -> Any:
        """Turn ``"lora"`` or ``{"type": "lora", ...}`` into the matching spec; leave other values alone."""
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict):
            return value
        if not isinstance(value.get("type"), str):
            raise UnknownNameError(f"needs a 'type', one of {', '.join(self.names())}")
        settings = {k: v for k, v in value.items() if k != "type"}
        return self.get(value["type"]).model_validate(settings)

    def summaries(self) -> dict[str, str]:
        """Return each name with the first line of its file's docstring, reading files without importing them."""
        found = {e.name: f"from {e.value}" for e in self._entry_points()}
        for info in self._files():
            spec = info.module_finder.find_spec(info.name, None)  # type: ignore[call-arg,union-attr]
            tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
            found[info.name] = (ast.get_docstring(tree) or "").partition("\n")[0]
        return dict(sorted(found.items()))

    def _files(self) -> Sequence[pkgutil.ModuleInfo]:
        paths = importlib.import_module(self.package).__path__
        return [m for m in pkgutil.iter_modules(paths) if not m.name.startswith("_")]

    def _is_plugin(self, value: Any, module: str) -> bool:
        return isinstance(value, type) and issubclass(value, self.base) and value.__module__ == module

    def _entry_points(self) -> Iterable[EntryPoint]:
        return entry_points(group=f"tunesmith.{self.kind}")


def suggest(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` when something close exists, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
