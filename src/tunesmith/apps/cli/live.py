"""The live display of a terminal: a bar with loss, speed and time left, messages above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tunesmith.apps.cli.show import event_text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from tunesmith.core.events import Event


class LiveProgress:
    """Shows events in a rich progress display."""

    def __init__(self, console: Console) -> None:
        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.stop()

    def hear(self, event: Event) -> None:
        """Show what *event* says."""
        if event["kind"] == "begin":
            self.tasks["training"] = self._task("training", event["steps"], event["step"])
        elif event["kind"] == "step":
            said = f"reward {event['reward']:.3f}" if "reward" in event else f"loss {event['loss']:.3f}"
            figures = f"{said}  {event['tokens_per_second']:,.0f} tokens/s"
            self.display.update(self.tasks["training"], completed=event["step"], figures=figures)
            return
        elif event["kind"] == "progress":
            task = self.tasks.get(event["task"])
            if task is None or event["done"] < self.display.tasks[self.display.task_ids.index(task)].completed:
                task = self.tasks[event["task"]] = self._task(event["task"], event["total"], 0)
            self.display.update(task, completed=event["done"])
            return
        if text := event_text(event):
            self.display.console.print(Text(text))

    def _task(self, name: str, total: int, done: int) -> TaskID:
        return self.display.add_task(name, total=total, completed=done, figures="")
