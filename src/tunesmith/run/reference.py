"""The reference pages of ``docs/reference``, written from the code: ``python -m tunesmith.run.reference FOLDER``."""

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import annotated_types
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunesmith.core.files import write_text
from tunesmith.core.registry import Block, Registry, Spec
from tunesmith.data.formats import Format
from tunesmith.methods import Method
from tunesmith.recipe.places import Place
from tunesmith.recipe.schema import Recipe
from tunesmith.run.catalogue import REGISTRIES, default_text
from tunesmith.run.defaults import method_rate
from tunesmith.run.importing_page import importing_page
from tunesmith.run.verse_rules_page import verse_rules_page
from tunesmith.templates.library import read_template, template_names

_GENERATED = "<!-- written by `python -m tunesmith.run.reference docs/reference`; change the code, not this page -->"

# page -> heading, what such a plug-in is, how a recipe names one
_PLUGINS = {
    "methods": ("Methods", "A method decides which weights train.", "method: {example}"),
    "stages": ("Stages", "A stage decides what is minimised.", "stage: {example}"),
    "optimizers": ("Optimizers", "An optimizer turns a gradient into a step.", "optimizer: {example}"),
    "quantizations": (
        "Quantizations",
        "A quantization says in what form the weights of the base model are held; `method` trains beside them.",
        "model: {{path: Qwen/Qwen3-0.6B, quantization: {example}}}",
    ),
    "formats": (
        "Data formats",
        "A format reads a row of a file as a conversation or a text. It is found from the columns; name it, or say "
        "with `columns` which column of the file is which, where that fails.",
        "data: {{train: [{{path: rows.jsonl, format: {example}}}]}}",
    ),
    "scores": (
        "Scores",
        "A score gives an answer a number from 0 to 1, by comparison with the answer in the data.",
        "evaluation: {{scores: [{example}]}}",
    ),
    "constraints": (
        "Constraints",
        "A constraint says at every step what may be written next: the answer has its form, whatever the model.",
        "evaluation: {{generation: {{constraint: {example}}}}}",
    ),
    "cleaners": (
        "Cleaning steps for verse",
        "A cleaner is one step of `tunesmith verse clean`: it changes poems, or drops them, and tells what it did. "
        "`--steps` names them in their order, `--set` changes a setting, such as `--set lost.action=drop`. Programs "
        "get one from `tunesmith.data.cleaning.CLEANERS`, by its name or as it is written here.",
        "{example}",
    ),
}

_DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "And now?"},
]

_BOUNDS: Mapping[type, str] = {
    annotated_types.Ge: "at least {0.ge}",
    annotated_types.Gt: "more than {0.gt}",
    annotated_types.Le: "at most {0.le}",
    annotated_types.Lt: "less than {0.lt}",
    annotated_types.MinLen: "not empty",
}


def reference_pages() -> dict[str, str]:
    """Return file name -> text of every page."""
    pages = {"settings": _settings_page(), "templates": _templates_page(), "commands": _commands_page()}
    pages |= {"importing": importing_page(), "verse-rules": verse_rules_page()}
    pages |= {name: _plugins_page(name, REGISTRIES[name]) for name in _PLUGINS}
    return {f"{name}.md": f"{_GENERATED}\n\n{text.rstrip()}\n" for name, text in pages.items()}


# --- settings


def _settings_page() -> str:
    parts = ["# Settings", "Every setting of a recipe. A block that is left out has its defaults."]
    parts += ["## The recipe", _table(Recipe)]
    shown: dict[type[Block], str] = {}
    for name, setting in Recipe.model_fields.items():
        parts += _sections(Place(setting.rebuild_annotation()), name, shown)
    return "\n\n".join(parts)


def _sections(place: Place, path: str, shown: dict[type[Block], str]) -> Iterator[str]:
    """Yield heading, purpose and settings of the block at *path* and of those inside; *shown* says where each was."""
    if place.is_list:
        place, path = place.child("0", []) or place, f"{path}.0"
    block = place.block({})
    if block is None or issubclass(block, Spec):
        return
    yield f"## {path}"
    if block in shown:
        yield f"The settings of `{shown[block]}`."
        return
    shown[block] = path
    yield _text(block.__doc__) + (f" A text in its place is its `{block.short_for}`." if block.short_for else "")
    yield _table(block)
    for name, setting in block.model_fields.items():
        yield from _sections(Place(setting.rebuild_annotation()), f"{path}.{name}", shown)


def _table(block: type[BaseModel]) -> str:
    rows = ["| setting | what fits | default | what it does |", "|---|---|---|---|"]
    for name, setting in block.model_fields.items():
        default = default_text(setting)
        cells = (f"`{name}`", _fits(setting), f"`{default}`" if default else "", _purpose(setting))
        escaped = " | ".join(cell.replace("|", r"\|") for cell in cells)
        rows.append(f"| {escaped} |")
    return "\n".join(rows)


def _fits(setting: FieldInfo) -> str:
    place = Place(setting.rebuild_annotation())
    bounds = [_BOUNDS[type(each)].format(each) for each in _constraints(setting.rebuild_annotation())]
    page = next(
        (f"{name}.md" for name in REGISTRIES for _, found in place.alternatives if found is REGISTRIES[name]), ""
    )
    words = place.wanted()
    return ", ".join([f"[{words}]({page})" if page else words, *bounds])


def _constraints(annotation: Any) -> Iterator[Any]:
    """Yield the bounds in an annotation, wherever they stand in it."""
    for each in getattr(annotation, "__metadata__", ()):
        nested = each.metadata if isinstance(each, FieldInfo) else [each]
        yield from (bound for bound in nested if type(bound) in _BOUNDS)
    for inner in getattr(annotation, "__args__", ()):
        yield from _constraints(inner)


def _purpose(setting: FieldInfo) -> str:
    block = Place(setting.rebuild_annotation()).block({})
    return _text(setting.description or (block.__doc__ if block else ""))


def _text(docstring: str | None) -> str:
    """Return a docstring as one paragraph of Markdown."""
    text = " ".join(inspect.cleandoc(docstring or "").split())
    return re.sub(r":\w+:`(?:[\w.]+\.)?(\w+)`", r"`\1`", text).replace("``", "`")


# --- plug-ins


def _plugins_page(name: str, registry: Registry[Any]) -> str:
    title, purpose, usage = _PLUGINS[name]
    default = f" Left out, it is `{registry.default}`." if registry.default else ""
    parts = [f"# {title}", f"{purpose}{default}"]
    for plugin in registry.names():
        parts += _plugin(plugin, registry.get(plugin), usage)
    return "\n\n".join(parts)


def _plugin(name: str, plugin: type[Block], usage: str) -> Iterator[str]:
    yield f"## {name}"
    yield _text((importlib.import_module(plugin.__module__).__doc__ or "").partition("\n\n")[0])
    yield _text(plugin.__doc__)
    first = next(iter(plugin.model_fields.items()), None)
    example = f"{{type: {name}, {first[0]}: {default_text(first[1])}}}" if first else name
    yield f"```yaml\n{usage.format(example=example)}\n```"
    if issubclass(plugin, Method):
        result = "an adapter beside the base model" if plugin.adds_adapter else "a whole model"
        yield f"Its result is {result}; its usual learning rate is {method_rate(plugin):g}."
    if issubclass(plugin, Format):
        rows = [
            f"| `{key}` | {'yes' if key in plugin.required else ''} | {what} |" for key, what in plugin.columns.items()
        ]
        yield "\n".join(["| column | required | what it holds |", "|---|---|---|", *rows])
    if plugin.model_fields:
        yield _table(plugin)


# --- templates and commands


def _templates_page() -> str:
    parts = [
        "# Templates",
        "A template turns messages into text. `auto` is the one that comes with the tokenizer, and right for every "
        "model that has one; name another only for a base model without. `template: {name: mine.jinja}` reads a file: "
        "a Jinja template as transformers knows them, begun by a comment with a line that says what it is and a line "
        "`stop:` for each token that ends a turn (`eos` is the tokenizer's own end token).",
    ]
    for name in template_names():
        template = read_template(name)
        stops = ", ".join(f"`{token}`" for token in template.stop)
        parts += [
            f"## {name}",
            template.summary,
            f"Turns end with {stops}. From: {template.source}.",
            f"```text\n{_rendered(template.jinja)}\n```",
        ]
    return "\n\n".join(parts)


def _rendered(jinja: str) -> str:
    """Return the dialogue in this template; without its system message where that is refused."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    template = environment.from_string(jinja)
    given = {"bos_token": "<bos>", "eos_token": "<eos>", "add_generation_prompt": True}
    try:
        return template.render(messages=_DIALOGUE, **given)
    except TemplateError:
        return template.render(messages=_DIALOGUE[1:], **given)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _commands_page() -> str:
    names = [name for first in _subcommands() for name in (first, *(f"{first} {n}" for n in _subcommands(first)))]
    shown = {name: _help(*name.split()) for name in names}
    purposes = {name: " ".join(text.split("\n\n")[1].split()) for name, text in shown.items()}
    parts = ["# Commands", "\n".join(f"- [`tunesmith {n}`](#{n.replace(' ', '-')}): {purposes[n]}" for n in names)]
    return "\n\n".join([*parts, *(f"## {name}\n\n```text\n{shown[name]}```" for name in names)])


def _subcommands(*words: str) -> list[str]:
    return re.findall(r"^  (\w+) ", _help(*words).partition("Commands:\n")[2], re.MULTILINE)


def _help(*words: str) -> str:
    # the doors stand above this module, so they are asked as anybody would
    command = [sys.executable, "-m", "tunesmith", *words, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    return shown.replace("python -m tunesmith", "tunesmith")


def main() -> None:
    """Write the pages into the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tunesmith.run.reference FOLDER")
    for name, text in reference_pages().items():
        write_text(Path(sys.argv[1]) / name, text)


if __name__ == "__main__":
    main()
