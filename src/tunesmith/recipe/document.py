"""A recipe as it is written: YAML and ``path=value`` overrides, with the place where each value stands."""

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from tunesmith.core.errors import Problem, UserError
from tunesmith.recipe.places import Location, Place
from tunesmith.recipe.schema import Recipe

_LARGEST = 2**18  # bytes; a larger file is data, given in the recipe's place

# what PyYAML says -> what a writer of recipes should look for
_PLAIN_WORDS = {
    "cannot start any token": "a tab or a stray character where a value should be; indent with spaces, quote text",
    "mapping values are not allowed": "a ':' where none can be; the line above may lack its own, or text needs quotes",
    "could not find expected ':'": "a line without ':', or indented too little; write 'setting: value'",
    "expected <block end>": "a line is indented differently from its neighbours, or a list and settings are mixed",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
    "expected the node content": "a value is missing after a comma or bracket",
    "unexpected end of stream": "a quote is not closed",
    "but found another document": "a recipe is one document; remove the line '---'",
    "found undefined alias": "text that begins with '*' needs quotes",
    "could not determine a constructor": "text that begins with '!' needs quotes",
}


class _Loader(yaml.SafeLoader):
    """YAML as a reader expects it: ``1e-4`` is a number; ``no``, ``0123`` and ``2025-01-02`` stay as they look."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_NUMBER = list("-+.0123456789")
_FRACTION = r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", _NUMBER),
    ("float", rf"{_FRACTION}|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _NUMBER),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_pattern})$"), _first)


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader or YAML 1.1 would take for something other than text."""


for _first_character, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _compiled in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _compiled, [_first_character])


@dataclass
class Document:
    """A recipe's values, where each was written (``file:line`` or the override), and what is wrong with the writing."""

    values: dict[str, Any]
    origins: dict[Location, str]
    problems: list[Problem] = field(default_factory=list)

    def origin(self, at: Location) -> str:
        """Return where the value at *at* stands, or the nearest group around it."""
        return next(self.origins[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.origins)

    def apply(self, override: str) -> None:
        """Set one ``path=value``; a text in the place of a group (``method: lora``) becomes the group it stands for."""
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.strip().split("."))
        where = f"override {override!r}"
        if not equals or not all(keys):
            hint = "write setting=value, such as schedule.epochs=1"
            self.problems.append(Problem("", "is not of the form setting=value", where, hint))
            return
        try:
            value = read_value(text.strip())
            self._set(keys, value, where)
        except (_NoPlaceError, yaml.YAMLError) as error:
            message = str(error) if isinstance(error, _NoPlaceError) else f"{text!r} is not valid YAML: {_say(error)}"
            self.problems.append(Problem(dotted, message, where))

    def _set(self, keys: Location, value: Any, where: str) -> None:
        block: Any = self.values
        place: Place | None = Place(Recipe)
        for depth, key in enumerate(keys[:-1]):
            inner = place.child(key, block) if place else None
            found = _opened(_get(block, key), inner, keys[depth + 1], ".".join(keys[: depth + 1]))
            _put(block, key, found, ".".join(keys[:depth]))
            self.origins.setdefault(keys[: depth + 1], where)
            block, place = found, inner
        _put(block, keys[-1], value, ".".join(keys[:-1]))
        self.origins = {at: line for at, line in self.origins.items() if at[: len(keys)] != keys} | {keys: where}


class _NoPlaceError(ValueError):
    """An override that names a place which is not there."""


def read_document(path: Path) -> Document:
    """Return the recipe written in the file *path*; raise :class:`UserError` where it cannot be read as YAML."""
    text = _read_text(path)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise UserError(f"{path}: is empty; a recipe needs at least model, data and output")
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a text"
            raise UserError(f"{path}:1: a recipe is made of lines 'setting: value', found {kind}")
        reader = _NodeReader(loader, str(path))
        values = reader.read(root, ())
    except yaml.YAMLError as error:
        raise UserError(f"{path}:{_position(error)}: not valid YAML: {_say(error)}") from None
    return Document(values, {(): str(path), **reader.origins}, reader.problems)


class _NodeReader:
    """Builds values from YAML nodes and notes their lines; an alias is a copy, so that overrides change one place."""

    def __init__(self, loader: _Loader, file: str) -> None:
        self.loader, self.file = loader, file
        self.origins: dict[Location, str] = {}
        self.problems: list[Problem] = []
        self.open: list[yaml.Node] = []
        self.seen: list[yaml.Node] = []

    def read(self, node: yaml.Node, at: Location) -> Any:
        """Return the value of *node*."""
        if node in self.open:
            raise yaml.MarkedYAMLError(problem="an anchor that contains itself", problem_mark=node.start_mark)
        self.open.append(node)
        value = self._read(node, at)
        self.open.pop()
        return value

    def _read(self, node: yaml.Node, at: Location) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.origins[*at, str(index)] = self._line(item)
            return [self.read(item, (*at, str(index))) for index, item in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _read_mapping(self, node: yaml.MappingNode, at: Location) -> dict[Any, Any]:
        self._find_twice(node, at)
        self.loader.flatten_mapping(node)
        values = {}
        for key_node, value_node in node.value:
            child = (*at, str(self._key(key_node)))
            self.origins.pop(child, None)  # what is written twice stands where it was written last
            self.origins[child] = self._line(key_node)
            values[self._key(key_node)] = self.read(value_node, child)
        return values

    def _find_twice(self, node: yaml.MappingNode, at: Location) -> None:
        """Note names written twice; only once for each node, as merging (``<<``) then repeats names in it."""
        if node in self.seen:
            return
        self.seen.append(node)
        written: set[Any] = set()
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in written:
                name = ".".join((*at, str(key)))
                self.problems.append(Problem(name, "written twice", self._line(key_node), "keep one of them"))
            written.add(key)

    def _key(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            problem = "a list or group where the name of a setting should be"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node.value if node.tag == "tag:yaml.org,2002:merge" else self.loader.construct_object(node)

    def _line(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"


def write_values(values: dict[str, Any]) -> str:
    """Return *values* as YAML that :func:`read_document`, or any other reader, reads back as they are."""
    return yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST and path.is_file():
            raise UserError(f"{path} is too large for a recipe ({path.stat().st_size:,} bytes); is it a data file?")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = {each.stem: each.name for each in path.parent.glob("*.y*ml")}
        near = [there[stem] for stem in get_close_matches(path.stem, there, n=1)]
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"no such recipe: {path}{hint}") from None
    except IsADirectoryError:
        go_on = f" (to go on with this run: tunesmith resume {path})" if (path / "plan.json").exists() else ""
        raise UserError(f"{path} is a folder; give a recipe file{go_on}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the recipe as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def read_value(text: str) -> Any:
    """Return an override's value: YAML in brackets or quotes, else a number, true, false, null or the text as it is."""
    loader = _Loader(text)
    if text[:1] in ("[", "{", '"', "'"):
        return loader.get_single_data()
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return loader.construct_object(yaml.ScalarNode(tag, text))


def _opened(value: Any, place: Place | None, next_key: str, name: str) -> dict[str, Any] | list[Any]:
    """Return the group or list that *value* is, or stands for; an empty one where there is none yet."""
    if place is not None and not place.has_inside:
        raise _NoPlaceError(f"{name} is one setting, not a group of them")
    if place is not None and place.is_list and not isinstance(value, list):
        value = [] if value is None else [value]
    if isinstance(value, list) and not next_key.isdigit():
        raise _NoPlaceError(f"{name} is a list; say which entry, such as {name}.0.{next_key}")
    if isinstance(value, str) and place is not None and (short := place.short_for):
        return {short: value}
    if value is not None and not isinstance(value, dict | list):
        raise _NoPlaceError(f"{name} is {value!r}, not a group of settings")
    if value is None:
        return [] if place is not None and place.fits_list and next_key.isdigit() else {}
    return value


def _get(block: Any, key: str) -> Any:
    if isinstance(block, dict):
        return block.get(key)
    return block[int(key)] if key.isdigit() and int(key) < len(block) else None


def _put(block: Any, key: str, value: Any, name: str) -> None:
    """Set an entry; in a list, one that is there or the next one."""
    if isinstance(block, dict):
        block[key] = value
    elif not key.isdigit():
        raise _NoPlaceError(f"{name} is a list; say which entry by number, such as {name}.0")
    elif int(key) > len(block):
        raise _NoPlaceError(f"there is no entry {key}: {name} has {len(block)}, counted from 0")
    else:
        block[int(key) : int(key) + 1] = [value]


def _position(error: yaml.YAMLError) -> str:
    """Return line and column where YAML cannot be read."""
    mark = error.problem_mark or error.context_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f"{mark.line + 1}:{mark.column + 1}" if mark else "1"


def _say(error: yaml.YAMLError) -> str:
    """Return what is wrong in plain words, and where the part that cannot be read began."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"a character (#x{error.character:04x}) that text cannot have"
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    raw = str(error.problem)
    plain = next((words for needle, words in _PLAIN_WORDS.items() if needle in raw), raw)
    begun, end = error.context_mark, error.problem_mark
    return f"{plain} (in what begins in line {begun.line + 1})" if begun and end and begun.line != end.line else plain
