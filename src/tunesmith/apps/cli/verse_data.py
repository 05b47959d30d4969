"""``tunesmith verse clean`` and ``verse dataset``: corpora of verse made clean, and made into training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

Files = Annotated[
    list[Path],
    typer.Argument(help="Files (JSON, JSON lines, CSV, Parquet, text) or folders of them.", metavar="FILES"),
]
Field = Annotated[str | None, typer.Option("--field", help="Field of the records that holds the verse.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the account as JSON for other programs.")]


def clean(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the clean poems (JSON lines).")],
    steps: Annotated[
        str | None, typer.Option("--steps", help="Steps in their order, parted by commas; left out, the usual ones.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of a step, such as lost.action=drop; may be repeated.")
    ] = None,
    field: Field = None,
    report: Annotated[bool, typer.Option("--report", help="Show examples of all that was changed or dropped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Clean a corpus of verse: notes, lost characters, variants, names, duplicates, marks; label form and rhyme."""
    from tunesmith.apps.cli import show
    from tunesmith.run.verse_cleaning import clean_files, counts_of, make_steps

    names = [name for part in (steps or "").split(",") if (name := part.strip())]
    chosen = make_steps(names, change or [])
    with show.progress(quiet=as_json) as listen:
        done = clean_files(files, output, chosen, field=field, listen=listen)
    if as_json:
        show.as_json_text(done.as_data())
        return
    out = show.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step")
    table.add_column("what was done", overflow="fold")
    table.add_column("poems", justify="right")
    before = ""
    for name, what, count in counts_of(done.steps):
        table.add_row("" if name == before else name, Text(what), f"{count:,}")
        before = name
    out.print(table)
    if report:
        for name, log in done.steps:
            for what, examples in log.examples.items():
                show.line(f"\n{name}: {what}")
                for example in examples:
                    after = f"\n    → {example.after}" if example.after else ""
                    show.line(f"  {example.where}\n    {example.before}{after}")
    unreadable = f", {len(done.bad):,} without verse" if done.bad else ""
    show.line(f"{done.read:,} records: {done.kept:,} kept, {done.num_dropped:,} dropped{unreadable}; wrote {output}")
    if done.dropped:
        show.line(f"what was dropped, with its reason: {done.dropped}")


def dataset(  # noqa: PLR0913 - an argument is an option of the command line
    genre: Annotated[str, typer.Argument(help="What to make it from: poems, couplets or ci.", metavar="GENRE")],
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the examples (Alpaca JSON).")],
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Kinds of instruction with their shares, such as theme=2,acrostic.")
    ] = None,
    per_poem: Annotated[int, typer.Option("--per-poem", min=1, help="Instructions for each poem.")] = 1,
    validation: Annotated[
        float, typer.Option("--validation", min=0, max=0.9, help="Share of the poems to hold out, in a second file.")
    ] = 0.0,
    strict: Annotated[bool, typer.Option("--strict", help="Take only verse that breaks no rule of its form.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take at most so many poems, drawn by the seed.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same files.")] = 0,
    field: Field = None,
    as_json: AsJson = False,
) -> None:
    """Make training data from verse: poems, couplets or ci become instructions with their answers."""
    from tunesmith.apps.cli import show
    from tunesmith.run.verse_dataset import Wanted, build_dataset, read_genre, read_shares

    found = read_genre(genre)
    wanted = Wanted(found, read_shares(found, kinds), per_poem, validation, strict, limit, seed)
    with show.progress(quiet=as_json) as listen:
        built = build_dataset(files, output, wanted, field=field, listen=listen)
    if as_json:
        show.as_json_text(built.as_data())
        return
    for kind, count in built.kinds.most_common():
        show.line(f"  {count:>8,}  {kind}")
    for reason, count in built.left_out.most_common():
        show.line(f"  {count:>8,}  left out: {reason}")
    held_out = f", {built.validation:,} held out in {built.validation_file}" if built.validation_file else ""
    show.line(f"{built.poems:,} of {built.read:,} records: {built.train:,} examples in {output}{held_out}")
