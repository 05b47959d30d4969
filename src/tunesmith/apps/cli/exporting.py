"""``tunesmith verify`` and ``tunesmith upload``: is it still the same model, and send it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.run.verify import Parity


def verify(
    model: Annotated[str, typer.Argument(help="What the others are held against: a run, or a model.", metavar="MODEL")],
    others: Annotated[
        list[str],
        typer.Argument(help="Folders, .gguf files, names on a hub, addresses of APIs (URL#NAME).", metavar="OTHER"),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Say whether other forms of a model (merged, quantized, GGUF, behind an API) still are that model.

    Fixed probes are asked: token ids, likeliest tokens, log-probabilities. Exit code 1 where a form is another model.
    """
    from tunesmith.apps.cli import show
    from tunesmith.run.verify import as_json as values
    from tunesmith.run.verify import verify as verify_forms

    with show.progress(quiet=as_json) as listener:
        found = verify_forms(model, others, listener)
    if as_json:
        show.as_json_text(values(found))
    else:
        _table(model, found)
    if not all(each.passed for each in found):
        raise typer.Exit(1)


def _table(model: str, found: Sequence[Parity]) -> None:
    from rich.table import Table

    from tunesmith.apps.cli import show

    table = Table(box=None, pad_edge=False)
    for heading in (f"held against {model}", "", "same prompts", "same tokens", "log-probabilities differ by"):
        table.add_column(heading)
    for each in found:
        mean, largest = each.mean_difference, each.largest_difference
        moved = "not told" if mean is None or largest is None else f"{mean:.2g} (at most {largest:.2g})"
        verdict = "same" if each.passed else "NOT THE SAME"
        prompts, tokens = f"{each.prompts} of {each.probes}", f"{each.same} of {each.tokens}"
        table.add_row(each.name, verdict, prompts, tokens, moved)
    show.console().print(table)
    for each in found:
        if each.why:
            show.line(f"{each.name}: {each.why}")


def upload(
    folder: Annotated[Path, typer.Argument(help="Folder that tunesmith export wrote, or an adapter's.")],
    to: Annotated[str, typer.Option(help="hub:OWNER/NAME (Hugging Face) or modelscope:OWNER/NAME.", metavar="PLACE")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; otherwise only its owner.")] = False,
    send: Annotated[bool, typer.Option("--send", help="Send it; without, only say what would be sent.")] = False,
) -> None:
    """Send an exported model to a hub; without --send nothing leaves this machine."""
    from tunesmith.apps.cli import show
    from tunesmith.run.upload import make_parcel
    from tunesmith.run.upload import send as send_parcel

    parcel = make_parcel(folder, to, public=public)
    for name in parcel.files:
        show.line(f"  {(folder / name).stat().st_size:>14,}  {name}")
    if parcel.left:
        show.line(f"stays here: {', '.join(parcel.left)}")
    who = "public" if public else "private"
    if not send:
        show.line(f"would send {parcel.size:,} bytes to {parcel.address} ({who}); add --send")
        return
    with show.progress() as listener:
        address = send_parcel(parcel, listener)
    show.line(f"sent: {address} ({who})")
