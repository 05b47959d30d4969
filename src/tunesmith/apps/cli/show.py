"""What the commands print: rich in a terminal, plain lines in a log."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.core.settings import process_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.core.events import Event, Listener
    from tunesmith.run.demo import Demo
    from tunesmith.run.inspect import Inspection, ShownToken
    from tunesmith.run.need import Memory
    from tunesmith.run.plan import Plan
    from tunesmith.run.planning import Planned
    from tunesmith.run.train import Outcome

# seconds between two lines of progress in a log
_LOG_INTERVAL = 5.0
# columns of a table in a log or file, where there is no terminal to ask
_LOG_WIDTH = 110


def console() -> Console:
    """Return a console on standard output as it is now."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)


def line(text: str) -> None:
    """Print one line."""
    console().print(text, markup=False, soft_wrap=True)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Listener]:
    """Yield a listener that shows events as they come: a live bar in a terminal, plain lines elsewhere."""
    if quiet or process_settings().rank > 0:  # of several processes one speaks
        yield lambda _: None
    elif sys.stdout.isatty():
        from tunesmith.apps.cli.live import LiveProgress

        with LiveProgress(console()) as live:
            yield live.hear
    else:
        yield PlainProgress().hear


class PlainProgress:
    """Prints events as plain lines: a step line at most every few seconds, everything else at once."""

    def __init__(self) -> None:
        self.steps = 0
        self.began, self.first = time.monotonic(), 0
        self.printed = 0.0

    def hear(self, event: Event) -> None:
        """Print what *event* says, if it is time."""
        if event["kind"] == "begin":
            self.steps, self.first, self.began = event["steps"], event["step"], time.monotonic()
        text = self._text(event)
        if text:
            print(text, flush=True)

    def _text(self, event: Event) -> str:
        now = time.monotonic()
        if event["kind"] == "step":
            step = event["step"]
            if step not in (1, self.steps) and now - self.printed < _LOG_INTERVAL:
                return ""
            self.printed = now
            left = (now - self.began) / max(1, step - self.first) * (self.steps - step)
            return (
                f"step {step}/{self.steps}  loss {event['loss']:.4f}  learning rate {event['learning_rate']:.2e}  "
                f"{event['tokens_per_second']:,.0f} tokens/s  {duration(left)} left"
            )
        if event["kind"] == "progress":
            if event["done"] < event["total"] and now - self.printed < _LOG_INTERVAL:
                return ""
            self.printed = now
            return f"{event['task']}: {event['done']}/{event['total']}"
        return event_text(event)


def event_text(event: Event) -> str:
    """Return an event other than a step or progress as a line; empty where there is nothing to say."""
    kind = event["kind"]
    if kind == "notice":
        return str(event["text"])
    if kind == "begin":
        return f"training: {event['steps']} steps over {event['examples']} examples"
    if kind == "evaluation":
        if "reward" in event:
            return f"step {event['step']}: held-out reward {event['reward']:.4f}"
        perplexity = f", perplexity {event['perplexity']:.2f}" if "perplexity" in event else ""
        preferred = f", {event['rewards/accuracy']:.1%} preferred rightly" if "rewards/accuracy" in event else ""
        return f"step {event['step']}: validation loss {event['loss']:.4f}{perplexity}{preferred}"
    if kind == "alarm":
        return f"alarm: {event['text']}"
    if kind == "recipe":
        return f"recipe {event['path']}"
    if kind == "end" and event["reason"] != "finished":
        return f"ended at step {event['step']}: {event['reason']}"
    return ""


def duration(seconds: float) -> str:
    """Return seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def as_json_text(value: Any) -> None:
    """Print *value* as JSON."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def plan(planned: Planned, *, as_json: bool) -> None:
    """Print what is settled and why, what it needs, and what would make it fit."""
    settled = planned.settled
    if as_json:
        as_json_text(planned.as_data())
        return
    out = console()
    table = _table("what", "is", "because")
    data = settled.as_data()
    for name, value in data["settled"].items():
        shown = _cost(settled.plan, name) if name in ("memory", "seconds") else _number(value)
        table.add_row("time" if name == "seconds" else name.replace("_", " "), shown, data["why"].get(name, _SAID))
    out.print(table)
    if settled.plan.memory is not None:
        out.print(_memory(settled.plan.memory))
    out.print(_counts(settled.prepared.as_data()))
    _notices(out, data["notices"])
    for text in planned.advice:
        out.print(Text(text, style="yellow"))
    if planned.fitted is not None:
        out.print(Text("\nthe recipe that fits, and why:", style="bold"))
        for why in planned.fitted.why:
            out.print(Text(f"  {why}"))
        out.print()
        out.print(Text(planned.recipe_text))


_SAID = "the recipe says so"


def _cost(plan: Plan, name: str) -> str:
    """Return memory or time as one reads it."""
    if name == "seconds":
        return "—" if plan.seconds is None else duration(plan.seconds)
    from tunesmith.run.need import bytes_text

    return "—" if plan.memory is None else bytes_text(plan.memory.total)


def _memory(memory: Memory) -> Table:
    """Return what the memory is for, with bars that fill up at what is there."""
    from tunesmith.run.need import bytes_text

    table = _table(f"memory: {memory.moment}", "", "")
    whole = max(memory.total, memory.available)
    for name, size in sorted(memory.parts.items(), key=lambda part: -part[1]):
        most = " (at most)" if memory.at_most and name in ("activations", "head and loss") else ""
        table.add_row(f"{name}{most}", bytes_text(size), _bar(size / whole))
    style = {"fits": "green", "close": "yellow", "too much": "red"}.get(memory.verdict)
    there = f" of {bytes_text(memory.available)}" if memory.available else ""
    table.add_row("total", f"{bytes_text(memory.total)}{there}", _bar(memory.total / whole), style=style)
    return table


def _bar(share: float, width: int = 30) -> str:
    return "█" * round(share * width) or "▏"


def inspection(found: Inspection, *, as_json: bool) -> None:
    """Print records token by token, trained ones in colour, and the counts."""
    if as_json:
        records = [{"origin": o, "sequences": [[vars_of(t) for t in s] for s in each]} for o, each in found.records]
        as_json_text({"counts": found.counts, "notices": found.notices, "records": records})
        return
    out = console()
    for origin, sequences in found.records:
        for sequence in sequences:
            trained = sum(token.weight != 0 for token in sequence)
            out.print(Text(f"{origin}  {len(sequence)} tokens, {trained} trained", style="bold"))
            out.print(_coloured(sequence, plain=not out.is_terminal))
            out.print()
    if found.records:
        legend = (
            "trained tokens are green, yellow where they weigh more or less than 1"
            if out.is_terminal
            else "trained tokens stand in [[…]], split by |, with ×weight where that is not 1"
        )
        out.print(Text(f"{legend}; grey ones are only read", style="dim"))
        out.print()
    out.print(_counts(found.counts))
    _notices(out, found.notices)


def vars_of(token: ShownToken) -> dict[str, Any]:
    """Return a token as JSON-ready data."""
    return {"id": token.id, "text": token.text, "weight": token.weight}


def _coloured(sequence: list[ShownToken], *, plain: bool) -> Text:
    text, inside = Text(), 0.0
    for index, token in enumerate(sequence):
        trained = token.weight != 0
        shown = token.text.replace("\n", "⏎\n")
        if plain:
            changed = token.weight != inside
            text.append("]]" if changed and inside else "")
            text.append(("[[" if token.weight == 1 else f"[[×{token.weight:g} ") if changed and trained else "")
            text.append(("|" if trained and not changed else "") + shown)
        else:
            shade = "black on green" if index % 2 else "black on bright_green"
            text.append(shown, style=(shade if token.weight == 1 else "black on yellow") if trained else "bright_black")
        inside = token.weight
    if plain and inside:
        text.append("]]")
    return text


def _counts(data: dict[str, Any]) -> Table:
    splits = [name for name in ("train", "validation") if data.get(name)]
    table = _table("data", *splits)
    for key in data["train"]:
        values = [data[name][key] for name in splits]
        lost = key in ("truncated", "dropped", "bad_rows", "duplicated_begin", "duplicated_end") and any(values)
        table.add_row(key.replace("_", " "), *(f"{value:,}" for value in values), style="yellow" if lost else None)
    return table


def _program() -> str:
    """Return how to call us: by name where that works, else as we were called."""
    return "tunesmith" if shutil.which("tunesmith") else _relative(sys.argv[0])


def _relative(path: str) -> str:
    """Return *path* as seen from here, if it lies below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def outcome(result: Outcome) -> None:
    """Print how a run ended and what to do next; end the process as a signal would have, if one stopped it."""
    path, out = result.folder.path, console()
    if process_settings().rank > 0:
        return
    if not result.complete:
        line(f"stopped by {result.reason}; everything is saved. Go on with: {_program()} resume {quote(str(path))}")
        import signal

        sys.exit(128 + signal.Signals[result.reason].value)
    found = result.folder.read("evaluation.json")
    if found:
        _evaluation(out, found, rows=3)
    line(f"report: {path / 'report.html'}")
    if result.folder.recipe().stage.head is None:
        line(f"talk to it: {_program()} chat {quote(str(path))}")
    else:
        line(f"it gives numbers, and writes no text; transformers loads {quote(str(result.folder.weights))}")
    line(f"one model for every tool: {_program()} export {quote(str(path))} --to {quote(f'models/{path.name}')}")


def demo(result: Demo) -> None:
    """Print both models' answers side by side and how to go on with a real model."""
    if not result.outcomes[-1].complete:
        outcome(result.outcomes[-1])
    out = console()
    _evaluation(out, result.evaluation, rows=10)
    length = result.evaluation["scores"]["length_match"]
    line(
        "held-out upper lines answered with a lower line of the same length: "
        f"base {length['base']:.1%}, tuned {length['tuned']:.1%}"
    )
    line(f"report: {result.report}")
    line(f"talk to it: {_program()} chat {quote(str(result.report.parent))} --prompt '请对出下联。\\n春风吹绿柳'")
    line(
        "the same with a real model: "
        f"{_program()} train recipes/demo/2-couplets.yaml model=Qwen/Qwen3-0.6B output=runs/qwen"
    )


def evaluation(found: dict[str, Any], *, as_json: bool) -> None:
    """Print an evaluation as a table and the answers side by side."""
    if as_json:
        as_json_text(found)
        return
    _evaluation(console(), found, rows=10, more="with --output comparison.html")


def _evaluation(out: Console, found: dict[str, Any], rows: int, more: str = "in the report") -> None:
    models = found["models"]
    if found["rows"]:
        answers = _table("asked", *models, "in the data")
        for row in found["rows"][:rows]:
            asked = row["prompt"][-1]["content"] if row["prompt"] else ""
            answers.add_row(_short(asked), *(_short(row["answers"][m]) for m in models), _short(row["reference"]))
        out.print(answers)
        if len(found["rows"]) > rows:
            out.print(Text(f"… and {len(found['rows']) - rows} more {more}", style="dim"))
    table = _table(f"{found['examples']} held out", *models)
    if found["loss"]:
        table.add_row("loss", *(_figure(found["loss"].get(m)) for m in models))
        if found["perplexity"]:
            table.add_row("perplexity", *(_figure(found["perplexity"].get(m)) for m in models))
    for name, values in found["scores"].items():
        # a model that gives numbers answers nothing: its scores are over all that was held out
        basis = f" of {len(found['rows'])} answers" if found["rows"] else ""
        table.add_row(f"{name.replace('_', ' ')}{basis}", *(f"{values[m]:.1%}" for m in models))
    out.print(table)
    out.print(Text(f"judged on {found['data']}", style="dim"))


def exported(path: Path, *, writes_text: bool) -> None:
    """Print where the model is and that it was checked."""
    from tunesmith.run.export_papers import FILE as CERTIFICATE
    from tunesmith.run.export_papers import vllm_command

    if not writes_text:
        line(f"wrote {path}: its numbers equal the run's on all probes; transformers loads it")
        return
    if path.suffix == ".gguf":
        line(f"wrote {path}: read back by transformers, it was held against the run ({path.with_suffix('.json').name})")
        modelfile = path.with_suffix(".Modelfile")
        if modelfile.exists():
            line(f"use it: ollama create NAME -f {quote(str(modelfile))}   or give the file to llama.cpp, LM Studio, …")
        return
    found = json.loads((path / CERTIFICATE).read_text("utf-8"))["parity"][0]
    if found["kind"] == "quantized":
        line(f"wrote {path}: what its fewer bits changed is in {CERTIFICATE}")
    else:
        line(f"wrote {path}: its greedy answers equal the run's on all probes")
    line(f"use it: {_program()} chat {quote(str(path))}   or {vllm_command(path)}")


def catalogue(found: dict[str, dict[str, str]]) -> None:
    """Print names and one line about each."""
    out = console()
    for kind, entries in found.items():
        out.print(Text(kind, style="bold"))
        table = Table.grid(padding=(0, 2))
        for name, text in entries.items():
            table.add_row(f"  {name}", Text(text))
        out.print(table)
        out.print()


def _table(*headings: str) -> Table:
    from rich import box

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    return table


def _notices(out: Console, notices: list[str]) -> None:
    for notice in notices:
        out.print(Text(f"note: {notice}", style="yellow"))


def _number(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"


def _short(text: str) -> Text:
    flat = " ".join(text.split())
    return Text(flat if len(flat) <= 60 else flat[:59] + "…")
