"""Read configurations and command lines of other programs, find out whose they are, and make recipes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.core.settings import process_settings
from tunesmith.recipe.document import read_document, read_value
from tunesmith.recipe.importing.axolotl import AXOLOTL
from tunesmith.recipe.importing.llamafactory import LLAMAFACTORY
from tunesmith.recipe.importing.result import Imported, make_result
from tunesmith.recipe.importing.translation import Given, Translation
from tunesmith.recipe.importing.trl import TRL
from tunesmith.recipe.read import read_recipe
from tunesmith.recipe.schema import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.errors import Problem
    from tunesmith.recipe.importing.argument import Program

PROGRAMS = {program.name: program for program in (LLAMAFACTORY, TRL, AXOLOTL)}

_LAUNCHERS = ("python", "python3", "torchrun", "accelerate", "deepspeed", "llamafactory-cli", "lmf", "trl", "axolotl")
_ENDINGS = (".yaml", ".yml", ".json")


def import_words(
    words: Sequence[str], *, program: str = "", processes: int = 0, skip_refused: bool = False
) -> Imported:
    """Return the recipe that *words* ask for: a file, ``name=value``, flags, or a whole command line.

    *program* is whose they are (found from the names where empty), *processes* how many it was to run in.  Raises
    :class:`UserError` for what cannot be read, :class:`RecipeError` for what is refused.
    """
    given, file, problems, said = _read_words(words)
    if problems:
        raise UserError("\n".join(map(str, problems)))
    chosen = _choose(given, program or said, str(file or "the command line"))
    translation = Translation(
        chosen,
        LLAMAFACTORY.arguments,
        file.parent if file else Path(),
        str(file or "the command line"),
        processes or process_settings().world_size,
    )
    translation.take(given)
    chosen.begin(translation)
    translation.follow_table()
    for rule in chosen.rules:
        if not translation.fatal:
            rule(translation)
    return make_result(translation, skip_refused=skip_refused)


def read_recipe_or_import(file: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Imported | None]:
    """Return the recipe in *file*, and how it was imported where the file is another program's configuration."""
    if file.is_file() and _is_foreign({each.name for each in _read_file(file)[0]}):
        imported = import_words([str(file)])
        return imported.recipe(overrides), imported
    return read_recipe(file, overrides), None


def _is_foreign(names: set[str]) -> bool:
    """Say whether *names* are more likely another program's than those of a recipe with slips in it."""
    ours = set(Recipe.model_fields) & names
    return max(len(_known(program) & names) for program in PROGRAMS.values()) > len(ours)


def _known(program: Program) -> set[str]:
    return {*program.arguments, *program.old_names}


def _choose(given: Sequence[Given], asked: str, source: str) -> Program:
    """Return whose arguments these are; raise :class:`UserError` where that is not clear."""
    if asked:
        if asked not in PROGRAMS:
            raise UserError(f"--from: {asked!r} is not known{suggest(asked, PROGRAMS)}; have {', '.join(PROGRAMS)}")
        return PROGRAMS[asked]
    names = {each.name for each in given}
    if not names:
        raise UserError(f"{source}: says nothing; give a file or flags, such as --model_name_or_path NAME")
    fit = {name: len(_known(program) & names) for name, program in PROGRAMS.items()}
    best = max(fit.values())
    if len(set(Recipe.model_fields) & names) > best:
        raise UserError(f"{source} is a recipe of Tunesmith already: tunesmith train {source}")
    if best == 0 or best < len(names) / 2:
        unknown = ", ".join(sorted(names)[:5])
        titles = ", ".join(program.title for program in PROGRAMS.values())
        raise UserError(f"{source} is no configuration of {titles}: it has {unknown}")
    likely = [program for name, program in PROGRAMS.items() if fit[name] == best]
    if len(likely) == 1:
        return likely[0]
    raise UserError(f"{source}: could be {' or '.join(p.title for p in likely)}; say --from {likely[0].name}")


def _read_words(words: Sequence[str]) -> tuple[list[Given], Path | None, list[Problem], str]:
    """Return what was given, the file, what is wrong with the writing, and the program if a launcher says it."""
    given: list[Given] = []
    file: Path | None = None
    problems: list[Problem] = []
    program, stage = "", ""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--config" or (not given and word.endswith(_ENDINGS) and not word.startswith("-")):
            file = Path(rest.pop(0)) if word == "--config" and rest else Path(word)
            from_file, problems = _read_file(file)
            given = _over(from_file, given)
        elif word.startswith("--"):
            flag = name.removeprefix("--").replace("-", "_")
            given = _over(given, [Given(flag, value if equals else _flag_value(rest), f"flag {word}")])
        elif equals and name.isidentifier() and not name.isupper():
            given = _over(given, [Given(name, read_value(value), f"override {word!r}")])
        elif name.isupper() or word in ("\\", "\n"):
            continue  # VARIABLE=value before a command
        elif given:
            raise UserError(f"{word!r}: a value without a flag; write --name value")
        else:
            program, stage = _launcher(word, program, stage)
    if stage and PROGRAMS.get(program) is TRL:
        given.append(Given("stage", stage, f"the command trl {stage}"))
    return given, file, problems, program


def _launcher(word: str, program: str, stage: str) -> tuple[str, str]:
    """Return what a word of the command in front of the flags says."""
    last = Path(word).name
    if last in ("llamafactory-cli", "lmf", "train_bash.py"):
        return "llamafactory", stage
    if last in ("trl", "axolotl"):
        return last, stage
    if program == "trl" and word in ("sft", "dpo", "kto", "reward", "grpo", "rloo"):
        return program, word
    if last in _LAUNCHERS or last.endswith(".py") or word in ("train", "launch", "-m", "sft", "dpo", "export"):
        return program, stage
    what = "is no configuration" if Path(word).exists() else "no such file"
    raise UserError(f"{word}: {what}; give a .yaml or .json file, or flags such as --model_name_or_path NAME")


def _flag_value(rest: list[str]) -> Any:
    """Take a flag's value from the words that follow: none means true, several are a list."""
    values = []
    while rest and not rest[0].startswith("--"):
        if rest[0] in ("\\", "\n"):
            rest.pop(0)
        else:
            values.append(rest.pop(0))
    return True if not values else values[0] if len(values) == 1 else values


def _over(below: list[Given], above: list[Given]) -> list[Given]:
    """Return *below* with *above* in place of what has the same name; flags given twice stay, to be told."""
    flags = {each.name for each in below if each.where.startswith("flag ")}
    names = {each.name for each in above} - flags
    return [each for each in below if each.name not in names] + above


def _read_file(file: Path) -> tuple[list[Given], list[Problem]]:
    if file.suffix == ".json" and file.is_file():
        return _read_json(file), []
    document = read_document(file)
    given = [Given(str(name), value, document.origin((str(name),))) for name, value in document.values.items()]
    return given, document.problems


def _read_json(file: Path) -> list[Given]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(values, _Pairs):
        raise UserError(f"{file}: a configuration is an object, name -> value")
    return [Given(name, _plain(value), str(file)) for name, value in values]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that a name given twice is seen."""


def _plain(value: Any) -> Any:
    """Return JSON's objects as dictionaries."""
    if isinstance(value, _Pairs):
        return {name: _plain(inner) for name, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
