"""What pydantic finds wrong with a recipe, in our words: the place, what was found, what would be right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tunesmith.core.errors import Problem
from tunesmith.core.registry import Spec, suggest
from tunesmith.recipe.document import Document
from tunesmith.recipe.places import Location, Place
from tunesmith.recipe.schema import Recipe

_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_NOT_EMPTY = ("string_too_short", "too_short")

_SHOWN = 4  # plug-ins named that have a setting


@dataclass(frozen=True)
class _Found:
    """One of pydantic's errors, and where in the recipe it is."""

    error: dict[str, Any]
    at: Location
    place: Place | None
    parent: tuple[Place | None, Any]
    union: Location | None
    """Where the types stand of which the error's is only one; None where there is no choice."""


def explain(errors: Iterable[Any], document: Document) -> list[Problem]:
    """Return pydantic's *errors* as problems of the recipe in *document*, one for each mistake."""
    found = _one_for_each_choice([_locate(dict(error), document.values) for error in errors])
    return [_problem(each, document) for each in found]


def _locate(error: dict[str, Any], value: Any) -> _Found:
    """Follow pydantic's location down the values, leaving out what it adds: names of types, numbers of lists of one."""
    place: Place | None = Place(Recipe)
    at: Location = ()
    union: Location | None = None
    parent: tuple[Place | None, Any] = (None, None)
    in_choice = False
    for key in error["loc"]:
        if place is not None and len(place.alternatives) > 1 and not in_choice:
            union, in_choice = at, True  # this key names one of the types
            continue
        in_choice = False
        if key == "[key]":
            continue
        if isinstance(key, int) and place is not None and place.is_list and not isinstance(value, list):
            place = place.child("0", [value])
            continue
        if isinstance(value, str) and place is not None and place.short_for == key:
            continue
        parent = (place, value)
        place = place.child(str(key), value) if place is not None else None
        at, value = (*at, str(key)), _inside(value, key)
    return _Found(error, at, place, parent, union)


def _inside(value: Any, key: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(key)
    return value[key] if isinstance(value, list) and isinstance(key, int) and key < len(value) else None


def _one_for_each_choice(found: Sequence[_Found]) -> list[_Found]:
    """Where several types fit and none did, keep what is said about the one that was meant."""
    out: list[_Found] = []
    for each in found:
        rivals = [other for other in found if other.union == each.union] if each.union is not None else [each]
        deepest = [other for other in rivals if len(other.at) > len(each.union or ()) or not _is_of_kind(other)]
        if each in (deepest or rivals[:1]):
            out.append(each)
    return out


def _is_of_kind(found: _Found) -> bool:
    """Say whether the error is that the value is of another type altogether."""
    kind = str(found.error["type"])
    return kind.endswith(("_type", "_parsing", "_from_float")) or kind == "literal_error"


def _problem(found: _Found, document: Document) -> Problem:
    error, place = found.error, found.place
    kind, value = error["type"], error["input"]
    hint = ""
    if kind == "extra_forbidden":
        message, hint = f"no such setting{_owner(found)}", _advise(found, document)
    elif kind == "missing":
        message, hint = "is required", _describe(found)
    elif kind == "invalid_key" or error["loc"][-1:] == ("[key]",):
        message = f"a setting's name should be text, found {_shown(value)}"
    elif kind in _BOUNDS:
        (bound,) = error["ctx"].values()
        message = f"should be {_BOUNDS[kind]} {int(bound) if bound == int(bound) else bound}, found {_shown(value)}"
    elif kind in _NOT_EMPTY:
        message = "is empty"
    elif kind == "finite_number":
        message = f"should be a finite number, found {value}"
    elif _is_of_kind(found) and place is not None:
        message = f"should be {place.wanted()}, found {_shown(value)}"
        hint = _correct(place, value)
    else:
        message = error["msg"].removeprefix("Value error, ")
    return Problem(".".join(found.at) or "recipe", message, document.origin(found.at), hint)


def _advise(found: _Found, document: Document) -> str:
    """Return the setting that was probably meant, or all there are."""
    place, value = found.parent
    name = found.at[-1]
    names = place.setting_names(value) if place is not None else []
    elsewhere = {at[-1]: ".".join(at) for at in Place(Recipe).settings(document.values)}
    if name in elsewhere:
        return f"did you mean {elsewhere[name]!r}?"
    if close := suggest(name, names):
        return close.strip(" ()")
    if owners := place.plugins_with(name) if place is not None else []:
        more = f" and {len(owners) - _SHOWN} others" if len(owners) > _SHOWN else ""
        return f"it is a setting of {', '.join(owners[:_SHOWN])}{more}"
    if far := get_close_matches(name, list(elsewhere), n=1):
        return f"did you mean {elsewhere[far[0]]!r}?"
    return f"there are {', '.join(names)}" if names != ["type"] else "it has none"


def _owner(found: _Found) -> str:
    """Return whose setting it would be, where that is a plug-in."""
    place, value = found.parent
    block = place.block(value) if place is not None else None
    return f" of {block.type_name()}" if block is not None and issubclass(block, Spec) else ""


def _describe(found: _Found) -> str:
    place, value = found.parent
    setting = place.field(found.at[-1], value) if place is not None else None
    if setting is None:
        return ""
    block = found.place.block({}) if found.place is not None else None
    text = setting.description or (block.__doc__ if block else None) or ""
    return text.partition("\n")[0].replace("``", "'")


def _correct(place: Place, value: Any) -> str:
    """Return how *value*, which is of the wrong type, was probably meant."""
    if isinstance(value, str) and (close := suggest(value, place.choices())):
        return close.strip(" ()")
    if place.is_list and isinstance(value, str | int | float):
        return f"write [{value}]"
    if isinstance(value, int | float) and any(kind is str for kind, _ in place.alternatives):
        return f"put it in quotes: '{value}'"
    if names := place.choices() if any(registry for _, registry in place.alternatives) else []:
        return f"there are {', '.join(names)}"
    block = place.block({})
    return f"its settings are {', '.join(block.model_fields)}" if block else ""


def _shown(value: Any) -> str:
    """Return a value found, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return f"a group with {', '.join(map(str, value))}" if value else "an empty group"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
