"""A run's folder: everything that was asked, settled and measured, and all that resuming needs."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.files import read_jsonl, write_json, write_text, writing
from tunesmith.recipe.document import write_values
from tunesmith.recipe.read import read_recipe

if TYPE_CHECKING:
    from tunesmith.core.events import Event
    from tunesmith.recipe.schema import Recipe

_MEASURED = ("step", "evaluation")

# all that a run writes into its folder
_WRITTEN = (
    "recipe.yaml",
    "plan.json",
    "data.json",
    "reference.json",
    "manifest.json",
    "events.jsonl",
    "metrics.jsonl",
    "evaluation.json",
    "verification.json",
    "samples",
    "report.html",
    "checkpoints",
    "weights",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @classmethod
    def create(cls, recipe: Recipe, *, overwrite: bool = False) -> RunFolder:
        """Make the folder and keep the recipe in it; raise :class:`UserError` rather than mix two runs."""
        folder = cls(recipe.output)
        if folder.path.is_file():
            raise UserError(f"output: {folder.path} is a file; name a folder")
        if folder.path.is_dir() and any(folder.path.iterdir()):
            if not folder.is_run:
                raise UserError(f"output: {folder.path} already holds other files; name a new folder")
            if not overwrite and folder.has_results:
                raise UserError(
                    f"output: {folder.path} already holds a run. Go on with it: tunesmith resume "
                    f"{quote(str(folder.path))}; replace it: add --overwrite; or give another output="
                )
            folder._empty(recipe)
        with writing(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        values = recipe.model_dump(mode="json", exclude_defaults=True)
        write_text(folder.path / "recipe.yaml", write_values(values))
        return folder

    def _empty(self, recipe: Recipe) -> None:
        """Remove the run and nothing else in its folder; raise :class:`UserError` where *recipe* reads from there."""
        sources = [*recipe.data.train, *recipe.data.validation]
        for read in (recipe.model.path, *(source.path for source in sources)):
            if read is not None and Path(read).resolve().is_relative_to(self.path.resolve()):
                raise UserError(f"output: {self.path} holds {read}, which this recipe reads; name a new folder")
        for name in _WRITTEN:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run; raise :class:`UserError` where *path* is none."""
        folder = cls(path)
        if not folder.is_run:
            raise UserError(f"{path} is not a run's folder (it has no recipe.yaml with a plan.json)")
        return folder

    @property
    def is_run(self) -> bool:
        """Whether this is the folder of a run."""
        # a recipe.yaml alone may be the user's own, in a folder with much else
        return (self.path / "recipe.yaml").exists() and (self.path / "plan.json").exists()

    @property
    def has_results(self) -> bool:
        """Whether something would be lost with it: a run that failed before its first step holds nothing."""
        return any((self.path / name).exists() for name in ("metrics.jsonl", "checkpoints", "weights"))

    @property
    def weights(self) -> Path:
        """Where the result is: adapter or model, with tokenizer and template."""
        return self.path / "weights"

    @property
    def samples(self) -> Path:
        """Answers that an online stage learnt from, some of every few steps."""
        return self.path / "samples" / "rollouts.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    def recipe(self) -> Recipe:
        """Read the recipe the run was started with."""
        return read_recipe(self.path / "recipe.yaml")

    def write(self, name: str, value: Any) -> None:
        """Write *value* as JSON under *name*."""
        write_json(self.path / name, value)

    def read(self, name: str) -> Any:
        """Read the JSON under *name*; None where there is none yet."""
        path = self.path / name
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def record(self, event: Event) -> None:
        """Append *event* to the run's log; measurements go to ``metrics.jsonl``, the rest to ``events.jsonl``."""
        if event["kind"] == "samples":
            self._keep_samples(event)
            return
        measured = event["kind"] in _MEASURED
        line = event if measured else {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **event}
        with (self.path / ("metrics.jsonl" if measured else "events.jsonl")).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line, ensure_ascii=False) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop what was measured after *step*: a resumed run measures it again."""
        path = self.path / "metrics.jsonl"
        kept = [m for m in read_jsonl(path) if m["step"] <= step]
        write_text(path, "".join(json.dumps(m, ensure_ascii=False) + "\n" for m in kept))
        if self.samples.exists():
            rows = [row for row in read_jsonl(self.samples) if row["step"] <= step]
            write_text(self.samples, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _keep_samples(self, event: Event) -> None:
        """Append the answers in *event*, one a line."""
        self.samples.parent.mkdir(exist_ok=True)
        with self.samples.open("a", encoding="utf-8") as log:
            for row in event["rows"]:
                log.write(json.dumps({"step": event["step"], **row}, ensure_ascii=False) + "\n")
