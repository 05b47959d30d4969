"""``tunesmith import``: configurations and command lines of other programs, made into recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.core.settings import process_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.recipe.importing.result import Imported
    from tunesmith.recipe.schema import Recipe

Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="A file and name=value, or -- and flags, such as -- --model_name_or_path NAME --lora_rank 8.",
        metavar="FILE | -- FLAGS",
    ),
]
Whose = Annotated[
    str, typer.Option("--from", help="Whose it is, where the names leave it open: llamafactory, trl or axolotl.")
]
SkipRefused = Annotated[
    bool, typer.Option("--skip-refused", help="Leave out arguments that have no equal, and name them in the recipe.")
]
Processes = Annotated[int, typer.Option(help="Processes it ran in; its batch was that many times larger.", min=1)]


def import_(
    words: Words = None,
    whose: Whose = "",
    skip_refused: SkipRefused = False,
    processes: Processes = 1,
    output: Annotated[Path | None, typer.Option(help="File for the recipe; left out, it is printed.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Train at once, without printing the recipe.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --run: replace the run that is there.")] = False,
) -> None:
    """Make a recipe of a configuration of LLaMA-Factory, TRL or axolotl."""
    from tunesmith.core.files import write_text
    from tunesmith.recipe.importing.read import import_words

    if not words:
        raise UserError("give a configuration file, or flags after --: tunesmith import -- --model_name_or_path NAME …")
    if overwrite and not run:
        raise UserError("--overwrite is for --run")
    imported = import_words(words, program=whose, processes=processes, skip_refused=skip_refused)
    if output is not None:
        if output.exists():
            raise UserError(f"{output} is there already; name a new file")
        write_text(output, imported.text)
    elif not run:
        typer.echo(imported.text, nl=False)
    _say(imported, beside=run or output is not None)
    try:
        recipe = imported.recipe()
    except RecipeError as error:
        if run:
            raise
        typer.echo(f"to be put right before it trains:\n{error}", err=True)
        return
    if run:
        _train(recipe, overwrite=overwrite)


def read_or_import(file: Path, overrides: Sequence[str]) -> Recipe:
    """Return the recipe in *file*; of another program's configuration say what differs."""
    from tunesmith.recipe.importing.read import read_recipe_or_import

    recipe, imported = read_recipe_or_import(file, overrides)
    if imported is not None and process_settings().rank == 0:
        _say(imported, beside=True)
    return recipe


def _say(imported: Imported, *, beside: bool) -> None:
    """Print the counts, and what differs where the recipe does not say it."""
    typer.echo(imported.summary, err=True)
    for text in imported.explanations if beside else ():
        typer.echo(f"  {text}", err=True)


def _train(recipe: Recipe, *, overwrite: bool) -> None:
    from tunesmith.apps.cli import show
    from tunesmith.run.train import train

    with show.progress() as listener:
        outcome = train(recipe, listener, overwrite=overwrite)
    show.outcome(outcome)
