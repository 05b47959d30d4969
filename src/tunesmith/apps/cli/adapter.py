"""``tunesmith adapter``: look at adapters, add them up, make them of models, change their kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from tunesmith.run.adapters import Description
    from tunesmith.run.extract import Extracted

adapter_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at adapters, add, extract, convert.")

Named = Annotated[str, typer.Argument(help="A run's folder, or an adapter's.", metavar="ADAPTER")]
Target = Annotated[Path, typer.Option(help="New folder for the adapter.")]
Rank = Annotated[int, typer.Option(help="Rank of the new adapter.", min=1)]
Whole = Annotated[
    bool, typer.Option("--whole", help="Save modules that no LoRA can hold (norms, embeddings) beside it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


@adapter_app.command()
def show(adapter: Named, as_json: AsJson = False) -> None:
    """Say what an adapter is: kind, rank, modules, base, size."""
    from tunesmith.apps.cli import show as shown
    from tunesmith.run.adapters import describe_adapter

    found = describe_adapter(adapter)
    if as_json:
        shown.as_json_text(found.as_data())
        return
    for name, text in _lines(found):
        shown.line(f"{name:<12}{text}")


def _lines(found: Description) -> list[tuple[str, str]]:
    """Return what there is to say, line by line."""
    fits = {True: "", False: "; it has CHANGED since", None: "; whether it changed since was not noted"}
    rows = [("path", found.path), ("kind", found.kind)]
    rows += [("rank", str(found.rank))] if found.rank is not None else []
    rows += [("alpha", f"{found.alpha:g}")] if found.alpha is not None else []
    rows += [("modules", ", ".join(found.targets))] if found.targets else []
    rows += [("whole", ", ".join(found.whole_modules))] if found.whole_modules else []
    rows += [("base", found.base)]
    rows += [("on top of", ", then ".join(found.stands_on))] if found.stands_on else []
    rows[-1] = (rows[-1][0], rows[-1][1] + fits[found.base_unchanged])
    return [*rows, ("parameters", f"{found.parameters:,}"), ("bytes", f"{found.bytes:,}")]


@adapter_app.command()
def add(
    adapters: Annotated[list[str], typer.Argument(help="Runs or adapters on one base.", metavar="ADAPTER")],
    to: Target,
    weights: Annotated[
        str | None, typer.Option(help="Weight of each, such as 0.7,0.3; left out, equal shares of one.")
    ] = None,
    how: Annotated[
        str,
        typer.Option(
            help="Way to add: svd, cat, linear, ties, dare_linear, dare_ties, magnitude_prune; "
            "the last four with _svd, too."
        ),
    ] = "svd",
    density: Annotated[
        float | None, typer.Option(help="Share of entries that ties, dare and magnitude_prune keep.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of an svd result; left out, the largest.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of what dare drops.")] = 0,
) -> None:
    """Add LoRA adapters of one base, each with a weight."""
    from tunesmith.apps.cli import show as shown
    from tunesmith.run.adapters import add_adapters

    shares = _numbers(weights) if weights is not None else None
    with shown.progress() as listener:
        add_adapters(adapters, to, weights=shares, how=how, density=density, rank=rank, seed=seed, listener=listener)
    shown.line(f"wrote {to}; see what it is worth: tunesmith compare {adapters[0]} {to}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--weights: {text!r} is no list of numbers such as 0.7,0.3") from None


@adapter_app.command()
def extract(
    tuned: Annotated[str, typer.Argument(help="A model, run or Hub name.", metavar="TUNED")],
    base: Annotated[str, typer.Argument(help="What it was made of.", metavar="BASE")],
    to: Target,
    rank: Rank = 16,
    whole: Whole = False,
    as_json: AsJson = False,
) -> None:
    """Make a LoRA adapter of the difference of two models."""
    from tunesmith.apps.cli import show as shown
    from tunesmith.run.extract import extract as extract_adapter

    with shown.progress(quiet=as_json) as listener:
        found = extract_adapter(tuned, base, to, rank=rank, whole=whole, listener=listener)
    _extracted(found, as_json=as_json)


@adapter_app.command()
def convert(
    adapter: Named,
    to: Target,
    rank: Rank = 16,
    whole: Whole = False,
    as_json: AsJson = False,
) -> None:
    """Make a LoRA adapter of one of another kind, or of another rank."""
    from tunesmith.apps.cli import show as shown
    from tunesmith.run.extract import convert as convert_adapter

    with shown.progress(quiet=as_json) as listener:
        found = convert_adapter(adapter, to, rank=rank, whole=whole, listener=listener)
    _extracted(found, as_json=as_json)


def _extracted(found: Extracted, *, as_json: bool) -> None:
    """Print how much of the difference the adapter holds."""
    from tunesmith.apps.cli import show as shown
    from tunesmith.run.extract import shortened

    if as_json:
        shown.as_json_text(found.as_data())
        return
    shown.line(f"wrote {found.path}: LoRA of rank {found.rank} on {found.layers} linear layers")
    shares = ", ".join(f"rank {rank} {share:.2%}" for rank, share in found.kept.items())
    shown.line(f"of their difference (squared Frobenius norm): {shares}")
    if found.whole:
        shown.line(f"saved whole beside it: {shortened(found.whole)}")
    if found.left_out:
        shown.line(
            f"NOT in it, with {found.outside:.2%} of the whole difference: {shortened(found.left_out)}; "
            "--whole saves their modules beside it"
        )
