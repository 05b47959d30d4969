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
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tunesmith.core.errors import Problem, UnknownNameError, UserError


class Block(BaseModel):
    """A group of settings: unknown keys are errors, values cannot change, attribute docstrings describe them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    short_for: ClassVar[str] = ""
    """The setting that a text in the block's place stands for, such as ``path``; none where empty."""

    @model_validator(mode="before")
    @classmethod
    def _read_short(cls, value: Any) -> Any:
        return {cls.short_for: str(value)} if cls.short_for and isinstance(value, str | PurePath) else value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_true_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Keep ``patience: true`` from meaning 1, as Python would have it."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted in (int, float, int | None, float | None):
            raise PydanticCustomError("number_type", "should be a number")
        return value


class Spec(Block):
    """A plug-in: a typed block of a recipe that knows how to do what it describes."""

    @classmethod
    def type_name(cls) -> str:
        """Return the public name: the file this class is defined in."""
        return cls.__module__.rpartition(".")[2]

    def check(self, recipe: Any) -> Iterable[Problem]:  # noqa: ARG002 - for those that override it
        """Yield what this plug-in cannot work with in *recipe*; paths are relative to the recipe's root."""
        return ()

    @model_serializer(mode="wrap")
    def _with_type(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"type": self.type_name(), **handler(self)}


def is_missing(package: str) -> bool:
    """Say whether *package*, named as it is imported, is not installed; nothing is imported."""
    return find_spec(package) is None


S = TypeVar("S", bound=Spec)


class Registry(Generic[S]):
    """Maps names to :class:`Spec` classes, importing each only when it is named.

    As an annotation (``Annotated[Method, METHODS]``) it makes pydantic read a name, or a group with ``type``, as the
    plug-in of that name; a group without ``type`` is the *default* one, where there is one.
    """

    def __init__(self, kind: str, package: str, base: type[S], default: str | None = None) -> None:
        self.kind, self.package, self.base, self.default = kind, package, base, default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))

    def names(self) -> list[str]:
        """Return every known name, without importing any plug-in."""
        return sorted({m.name for m in self._files()} | {e.name for e in self._entry_points()})

    def get(self, name: str) -> type[S]:
        """Return the class called *name*; raise :class:`UnknownNameError` that says which names exist."""
        if name not in (names := self.names()):
            raise UnknownNameError(f"unknown {self.kind} {name!r}{suggest(name, names)}; have {', '.join(names)}")
        for entry in self._entry_points():
            if entry.name == name:
                return self._load(entry)
        module = importlib.import_module(f"{self.package}.{name}")
        (cls,) = (v for v in vars(module).values() if self._is_plugin(v, module.__name__))
        return cast("type[S]", cls)

    def may_have(self, setting: str) -> bool:
        """Say whether a plug-in may have *setting*, reading files without importing them."""
        if list(self._entry_points()):
            return True
        written = re.compile(rf"^ +{re.escape(setting)}:", re.MULTILINE)
        folders = map(Path, importlib.import_module(self.package).__path__)
        return any(written.search(file.read_text("utf-8")) for folder in folders for file in folder.glob("*.py"))

    def parse(self, value: Any) -> Any:
        """Turn ``"lora"`` or ``{"type": "lora", ...}`` into the matching spec; leave other values alone."""
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict):
            return value
        settings = {"type": self.default, **value}
        name = settings.pop("type")
        if not isinstance(name, str):
            raise UnknownNameError(f"needs a type, one of {', '.join(self.names())}")
        return self.get(name).model_validate(settings)

    def make_default(self) -> S:
        """Return the plug-in that is used where none is named, with its default settings."""
        assert self.default is not None
        return self.get(self.default)()

    def summaries(self) -> dict[str, str]:
        """Return each name with the first line of its file's docstring, reading files without importing them."""
        found = {e.name: f"from {e.value}" for e in self._entry_points()}
        for info in self._files():
            spec = info.module_finder.find_spec(info.name, None)
            tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
            found[info.name] = (ast.get_docstring(tree) or "").partition("\n")[0]
        return dict(sorted(found.items()))

    def _load(self, entry: EntryPoint) -> type[S]:
        found = entry.load()
        if not (isinstance(found, type) and issubclass(found, self.base)) or found.type_name() != entry.name:
            raise UserError(
                f"{entry.value} of another distribution is no {self.kind} {entry.name!r}: it should be a "
                f"{self.base.__name__} in a module named {entry.name}"
            )
        return found

    def _files(self) -> Sequence[pkgutil.ModuleInfo]:
        paths = importlib.import_module(self.package).__path__
        return [m for m in pkgutil.iter_modules(paths) if not m.name.startswith("_")]

    def _is_plugin(self, value: Any, module: str) -> bool:
        return isinstance(value, type) and issubclass(value, self.base) and value.__module__ == module

    def _entry_points(self) -> Iterable[EntryPoint]:
        return _installed(f"tunesmith.{self.kind}")


@cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    # asking takes milliseconds: every installed distribution is looked at
    return tuple(entry_points(group=group))


def suggest(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` when something close exists, else nothing."""
    known = {each.lower(): each for each in names}
    # of short words nearly all are alike (gpu, cpu): there only a missing or a swapped letter is a slip
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6 if len(name) > 3 else 0.7)
    close.sort(key=lambda each: not each.startswith(name.lower()))  # adam is rather adamw than badam
    close = close or [each for each in known if sorted(each) == sorted(name.lower())]
    return f" (did you mean {known[close[0]]!r}?)" if close else ""
