"""Read a recipe from YAML and ``path=value`` overrides, remembering where each value came from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tunesmith.core.errors import Problem, RecipeError, UserError
from tunesmith.core.registry import Registry, suggest
from tunesmith.recipe.schema import Recipe

Location = tuple[str | int, ...]
Origins = dict[Location, str]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as everyone writes it: ``1e-4`` is a number, ``no`` and ``on`` stay words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    yaml.resolver.re.compile(r"^[-+]?(\d[\d_]*\.?\d*([eE][-+]?\d+)|\d[\d_]*\.\d*|\.\d+([eE][-+]?\d+)?|\.(inf|nan))$"),  # type: ignore[attr-defined]
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", yaml.resolver.re.compile(r"^(true|True|false|False)$"), list("tTfF"))  # type: ignore[attr-defined]


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe at *path* with *overrides* applied; raise :class:`RecipeError` with every problem at once."""
    values, origins, problems = _read_yaml(path)
    for override in overrides:
        problems += _apply(override, values, origins)
    return _validate(values, origins, str(path), problems)


def recipe_from_values(values: dict[str, Any], where: str = "the recipe") -> Recipe:
    """Return the recipe that *values* (a form, a run's file, another program) describe, checked the same way."""
    return _validate(values, {(): where}, where, [])


def _validate(values: dict[str, Any], origins: Origins, where: str, problems: list[Problem]) -> Recipe:
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [_explain(dict(e), values, origins, where) for e in error.errors()]
        raise RecipeError(problems) from None
    for problem in recipe.check():
        at = tuple(int(key) if key.isdigit() else key for key in problem.path.split("."))
        problems.append(Problem(problem.path, problem.message, problem.where or _origin(at, origins, where), problem.hint))
    if problems:
        raise RecipeError(problems)
    return recipe


def _read_yaml(path: Path) -> tuple[dict[str, Any], Origins, list[Problem]]:
    origins: Origins = {(): str(path)}
    problems: list[Problem] = []

    def walk(node: yaml.Node, at: Location) -> None:
        origins.setdefault(at, f"{path}:{node.start_mark.line + 1}")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                child = (*at, key.value)
                line = f"{path}:{key.start_mark.line + 1}"
                if child in origins:
                    problems.append(Problem(".".join(map(str, child)), "written twice", line, "keep one of them"))
                origins[child] = line
                walk(value, child)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*at, index))

    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except FileNotFoundError:
        near = suggest(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        raise UserError(f"no such recipe: {path}{near}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a recipe file (to go on with a run: tunesmith resume {path})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the recipe as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}:1: a recipe is a list of 'setting: value' lines, found {type(values).__name__}")
    if root is not None:
        walk(root, ())
    return values or {}, origins, problems


def _apply(override: str, values: dict[str, Any], origins: Origins) -> list[Problem]:
    """Set one ``path=value`` in *values*; return what is wrong with it."""
    dotted, equals, text = override.partition("=")
    where = f"override {override!r}"
    if not equals or not all(dotted.split(".")):
        return [Problem("", f"{override!r} is not an override", hint="write setting=value, such as schedule.epochs=1")]
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError:
        value = text
    keys: list[str | int] = [int(key) if key.isdigit() else key for key in dotted.split(".")]
    block: Any = values
    for depth, key in enumerate(keys[:-1]):
        child = block[key] if _has(block, key) else None
        if child is None or isinstance(child, str):
            # "method: lora" is short for "method: {type: lora}", "model: x" for "model: {path: x}"
            short = {"model": "path", "template": "name"}.get(str(keys[depth]), "type")
            child = {short: child} if child else {}
            if isinstance(block, list) and not _has(block, key):
                return [Problem(dotted, f"there is no number {key}; the list has {len(block)}", where)]
            block[key] = child
        block = child
        if not isinstance(block, dict | list):
            return [Problem(dotted, f"{key} is {block!r}, not a group of settings", where)]
    if isinstance(block, list) and not _has(block, keys[-1]):
        return [Problem(dotted, f"there is no number {keys[-1]}; the list has {len(block)}", where)]
    block[keys[-1]] = value
    origins[tuple(keys)] = where
    return []


def _has(block: Any, key: str | int) -> bool:
    return key in block if isinstance(block, dict) else isinstance(key, int) and key < len(block)


def _origin(at: Location, origins: Origins, where: str) -> str:
    return next((origins[at[:n]] for n in range(len(at), -1, -1) if at[:n] in origins), where)


def _explain(error: dict[str, Any], values: dict[str, Any], origins: Origins, where: str) -> Problem:
    """Say one pydantic error in our words, with what was found and what would be right."""
    at = _real_location(error["loc"], values)
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should").replace("List should", "should")
    hint = ""
    if error["type"] == "extra_forbidden":
        message = "no such setting"
        names = _settings_at(at[:-1], values)
        hint = suggest(str(at[-1]), names).strip(" ()") or f"there are {', '.join(names)}"
    elif error["type"] == "missing":
        message = "is required"
    elif error["type"] == "model_type":
        message = f"should be a group of settings, found {_short(error['input'])}"
    elif not isinstance(error["input"], dict | BaseModel) and error["type"] != "value_error":
        message = f"{message}, found {_short(error['input'])}"
    return Problem(".".join(map(str, at)) or "recipe", message, _origin(at, origins, where), hint)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _real_location(location: Location, values: Any) -> Location:
    """Drop what pydantic adds to a location (names of union members) and the file does not have."""
    at: list[str | int] = []
    for index, key in enumerate(location):
        last = index == len(location) - 1
        if isinstance(values, dict | list) and _has(values, key):
            at.append(key)
            values = values[key]
        elif isinstance(values, str | list) and isinstance(key, int):
            at.append(key)
        elif isinstance(values, dict) and last:
            at.append(key)
    return tuple(at)


def _settings_at(at: Location, values: Any) -> list[str]:
    """Return the settings that exist in the block at *at*."""
    model: type[BaseModel] = Recipe
    for key in at:
        values = values[key]
        if isinstance(key, int):
            continue
        field = model.model_fields[key]
        registry = _registry(field.metadata) or next((_registry(m) for m in [_nested_metadata(field.annotation)] if m), None)
        if registry is not None and not isinstance(values, list):
            model = registry.get(values["type"] if isinstance(values, dict) else values)
        else:
            model = _model_in(field.annotation) or model
    return sorted({*model.model_fields, *(["type"] if "type" in dir(model) else [])})


def _registry(metadata: Sequence[Any]) -> Registry[Any] | None:
    for validator in metadata:
        owner = getattr(getattr(validator, "func", None), "__self__", None)
        if isinstance(owner, Registry):
            return owner
    return None


def _nested_metadata(annotation: Any) -> Sequence[Any]:
    return next((a.__metadata__ for a in get_args(annotation) if hasattr(a, "__metadata__")), ())


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the block inside ``Block | None`` or ``list[Block]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _model_in(a))), None)
