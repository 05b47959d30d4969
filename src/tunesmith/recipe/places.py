"""What belongs at a place in a recipe: from the names that lead there to the blocks and types that describe it."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from tunesmith.core.registry import Block, Registry

Location = tuple[str, ...]

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


@dataclass(frozen=True)
class Place:
    """A place in the schema, known by the annotation that pydantic checks there."""

    annotation: Any

    @cached_property
    def alternatives(self) -> list[tuple[Any, Registry[Any] | None]]:
        """The types that fit (without None), each with its registry if it is a plug-in."""
        return list(_alternatives(self.annotation, None))

    @property
    def is_list(self) -> bool:
        """Whether only a list fits."""
        return all(get_origin(kind) is list for kind, _ in self.alternatives)

    @property
    def fits_list(self) -> bool:
        """Whether a list is among what fits."""
        return any(get_origin(kind) is list for kind, _ in self.alternatives)

    @property
    def has_inside(self) -> bool:
        """Whether a group or a list fits, or anything does."""
        return any(kind is Any or _is_block(kind) or get_origin(kind) in (list, dict) for kind, _ in self.alternatives)

    @property
    def short_for(self) -> str:
        """The setting that a text stands for, where a group belongs; empty where text is text or wrong."""
        for kind, registry in self.alternatives:
            if registry is not None:
                return "type"
            if _is_block(kind):
                return str(kind.short_for)
        return ""

    def block(self, value: Any) -> type[Block] | None:
        """Return the block that describes the group *value*; None where none does, or its type is not known."""
        for kind, registry in self.alternatives:
            if registry is not None:
                name = value.get("type", registry.default) if isinstance(value, dict) else value
                if name in registry.names():
                    return registry.get(name)
            elif _is_block(kind):
                return kind  # type: ignore[no-any-return]
        return None

    def field(self, name: str, value: Any) -> FieldInfo | None:
        """Return the setting *name* of the group *value*."""
        block = self.block(value)
        return block.model_fields.get(name) if block else None

    def child(self, key: str, value: Any) -> "Place | None":
        """Return the place under *key* of *value*, which stands here."""
        setting = self.field(key, value)
        if setting is not None:
            return Place(setting.rebuild_annotation())
        for kind, _ in self.alternatives:
            if get_origin(kind) is list and key.isdigit():
                return Place(get_args(kind)[0])
            if get_origin(kind) is dict:
                return Place(get_args(kind)[1])
        return None

    def setting_names(self, value: Any) -> list[str]:
        """Return what can be set in the group *value*."""
        block = self.block(value)
        plugin = any(registry for _, registry in self.alternatives)
        return sorted([*(block.model_fields if block else ()), *(["type"] if plugin else [])])

    def plugins_with(self, name: str) -> list[str]:
        """Return the plug-ins that could stand here and have a setting *name*: the default first, then short names."""
        found = []
        for registry in filter(None, (registry for _, registry in self.alternatives)):
            if not registry.may_have(name):  # to import all of them takes half a second
                continue
            names = sorted(registry.names(), key=len)
            if registry.default:
                names = [registry.default, *(each for each in names if each != registry.default)]
            found += [plugin for plugin in names if name in registry.get(plugin).model_fields]
        return found

    def settings(self, value: Any, at: Location = ()) -> Iterator[Location]:
        """Yield where every setting below here is."""
        block = self.block(value)
        for key in block.model_fields if block else ():
            yield (*at, key)
            inner = self.child(key, value)
            if inner is not None:
                below = value.get(key, {}) if isinstance(value, dict) else {}
                yield from inner.settings(below, (*at, key))

    def wanted(self) -> str:
        """Return in words what fits here."""
        kinds = [kind for kind, _ in self.alternatives]
        fitting = [each for each in self.alternatives if each[0] is not int or float not in kinds]
        fitting.sort(key=lambda each: _is_block(each[0]))  # the short way of writing first
        return " or ".join(_word(*each) for each in fitting)

    def choices(self) -> list[str]:
        """Return the words to choose from, where that is what fits."""
        out: list[str] = []
        for kind, registry in self.alternatives:
            if registry is not None:
                out += registry.names()
            if get_origin(kind) is Literal:
                out += map(str, get_args(kind))
        return out


def _word(kind: Any, registry: Registry[Any] | None) -> str:
    if registry is not None:
        article = "an" if registry.kind[0] in "aeiou" else "a"
        return f"the name of {article} {registry.kind}, or a group with its type and settings"
    origin = get_origin(kind)
    if origin is Literal:
        choices = get_args(kind)
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    if origin is list:
        return "a list"
    if _is_block(kind) and kind.short_for:
        return f"a {kind.short_for}, or a group of settings"
    if origin is dict or _is_block(kind):
        return "a group of settings"
    return _WORDS.get(kind, str(kind))


def _alternatives(annotation: Any, registry: Registry[Any] | None) -> Iterator[tuple[Any, Registry[Any] | None]]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = next((each for each in inner[1:] if isinstance(each, Registry)), registry)
        yield from _alternatives(inner[0], found)
    elif origin in (Union, types.UnionType):
        for each in inner:
            yield from _alternatives(each, registry)
    elif annotation is not type(None):
        yield annotation, registry


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Block)
