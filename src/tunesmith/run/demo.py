"""The demo: the ordinary recipes of ``recipes/demo/`` one after the other, on data that the package makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunesmith
from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.recipe.read import read_recipe
from tunesmith.run.demo_corpus import write_demo_data

if TYPE_CHECKING:
    from tunesmith.run.train import Outcome

RECIPES = ("1-pretrain.yaml", "2-couplets.yaml")


@dataclass(frozen=True)
class Demo:
    """What the demo made: the runs, in order, and the last one's evaluation."""

    outcomes: tuple[Outcome, ...]
    evaluation: dict[str, Any]

    @property
    def report(self) -> Path:
        """The last run's report."""
        return self.outcomes[-1].folder.path / "report.html"


def recipe_folder() -> Path:
    """Return where the shipped recipes are: beside the package when installed, in the checkout otherwise."""
    package = Path(tunesmith.__file__).parent
    for folder in (package / "recipes" / "demo", package.parents[1] / "recipes" / "demo"):
        if folder.is_dir():
            return folder
    raise UserError("the demo's recipes are missing from this installation")


def write_data(folder: Path) -> None:
    """Write the demo's data to *folder*/data, for those who run the recipes one by one."""
    write_demo_data(folder / "data")


def run_demo(folder: Path, listener: Listener = ignore) -> Demo:
    """Run the demo's recipes in *folder*; stop early if one of them was stopped."""
    from tunesmith.run.train import train

    write_data(folder)
    outcomes: list[Outcome] = []
    for name in RECIPES:
        path = recipe_folder() / name
        listener({"kind": "recipe", "path": str(path)})
        recipe = read_recipe(path, _inside(folder, path))
        outcomes.append(train(recipe, listener, overwrite=True))
        if not outcomes[-1].complete:
            return Demo(tuple(outcomes), {})
    return Demo(tuple(outcomes), outcomes[-1].folder.read("evaluation.json"))


def _inside(folder: Path, path: Path) -> list[str]:
    """Return the overrides that move a demo recipe from ``runs/demo`` to *folder*."""
    if folder == Path("runs/demo"):
        return []
    base = folder.as_posix()
    if path.name == RECIPES[0]:
        return [f"output={base}/base", f"data.train.0={base}/data/corpus.txt"]
    return [
        f"output={base}/couplets",
        f"model.path={base}/base",
        f"data.train.0={base}/data/couplets_train.json",
        f"data.validation.0={base}/data/couplets_test.json",
    ]
