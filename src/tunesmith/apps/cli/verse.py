"""``tunesmith verse``: whether verse obeys its form, and which character breaks it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from tunesmith.apps.cli.verse_data import clean, dataset
from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from tunesmith.prosody.pattern import Pattern
    from tunesmith.prosody.report import Report
    from tunesmith.prosody.rules import Finding
    from tunesmith.prosody.verses import Verse

verse_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check verse: tones, rhyme, form; couplets; rhyme books; corpora and data sets.",
)
verse_app.command()(clean)
verse_app.command()(dataset)

Verses = Annotated[
    list[str],
    typer.Argument(help="Verse, or files of it (text, JSON, JSON lines), or folders; - reads a pipe.", metavar="VERSE"),
]
FormName = Annotated[
    str | None,
    typer.Option("--form", help="Form to check against, such as 七律, 对联 or the name of a tune; left out, found."),
]
WrittenPattern = Annotated[
    str | None,
    typer.Option("--pattern", help="Pattern of your own to check against, such as 中仄平平仄，平平仄仄平韵."),
]
BookName = Annotated[
    str | None,
    typer.Option("--book", help="Rhyme book: 平水韵, 词林正韵 (the usual one for ci), 中华新韵 or 中华通韵."),
]
FieldName = Annotated[str | None, typer.Option("--field", help="Field of the records that holds the verse.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs, one verse a line.")]

_STYLES = {"fault": "bold red", "tolerated": "yellow", "note": "dim"}


@verse_app.command()
def check(
    verses: Verses,
    form: FormName = None,
    pattern: WrittenPattern = None,
    book: BookName = None,
    field: FieldName = None,
    as_json: AsJson = False,
) -> None:
    """Say whether verse obeys its form, what breaks it, and why."""
    reports = _reports(verses, form, pattern, book, field)
    if as_json:
        _print_json(reports)
        return
    first = list(islice(reports, 2))
    if not first:
        raise UserError("no verse was found")
    if len(first) > 1:
        _summarise(chain(first, reports))
        return
    from tunesmith.apps.cli import show

    out = show.console()
    report = first[0][1]
    out.print(_scansion(report))
    for finding in report.findings:
        out.print(_finding(finding))


def _summarise(reports: Iterable[tuple[Verse, Report]]) -> None:
    """Print a line for each verse that has faults, and the sums."""
    from tunesmith.apps.cli import show

    forms: Counter[str] = Counter()
    strict: Counter[str] = Counter()
    lenient: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    for verse, report in reports:
        name = report.form or "体式不明"
        forms[name] += 1
        strict[name] += report.strict
        lenient[name] += report.lenient
        faults = [finding for finding in report.findings if finding.severity != "note"]
        rules.update(finding.name for finding in faults)
        if faults:
            show.line(f"{verse.where}: {name}: {'；'.join(map(str, faults))}")
    show.line("")
    for name, count in forms.most_common():
        show.line(f"{name}: {count:,}, strict {strict[name] / count:.1%}, lenient {lenient[name] / count:.1%}")
    show.line("、".join(f"{name} {count:,}" for name, count in rules.most_common()))


@verse_app.command()
def scan(
    verses: Verses,
    form: FormName = None,
    pattern: WrittenPattern = None,
    book: BookName = None,
    field: FieldName = None,
    as_json: AsJson = False,
) -> None:
    """Print the tone of every character, wrong ones marked."""
    from tunesmith.apps.cli import show

    reports = _reports(verses, form, pattern, book, field)
    if as_json:
        _print_json(reports)
        return
    out = show.console()
    for _, report in reports:
        out.print(_scansion(report))


@verse_app.command()
def rhyme(
    characters: Annotated[str, typer.Argument(help="Characters to look up.", metavar="CHARACTERS")],
    as_json: AsJson = False,
) -> None:
    """Look up the tones and rhymes of characters in every book."""
    from tunesmith.apps.cli import show
    from tunesmith.prosody import BOOKS, readings

    for character in dict.fromkeys(characters):
        if character.isspace():
            continue
        found = {name: readings(character, book) for name, book in BOOKS.items()}
        if as_json:
            data = {name: [asdict(reading) for reading in having] for name, having in found.items()}
            sys.stdout.write(json.dumps({"character": character, **data}, ensure_ascii=False) + "\n")
            continue
        show.line(f"{character}" if any(found.values()) else f"{character}  unknown")
        for name, having in found.items():
            texts = [f"{reading.group}（{reading.tone}声 {reading.weight:.0%}）" for reading in having]
            if texts:
                show.line(f"  {name}  {'　'.join(dict.fromkeys(texts))}")


@verse_app.command()
def pair(
    upper: Annotated[str, typer.Argument(help="The upper line; clauses parted by marks.", metavar="UPPER")],
    lower: Annotated[str, typer.Argument(help="The lower line.", metavar="LOWER")],
    book: BookName = None,
    as_json: AsJson = False,
) -> None:
    """Check a couplet: lengths, line ends, repetitions, opposed tones, parallelism."""
    from tunesmith.apps.cli import show
    from tunesmith.prosody import COUPLET, ProsodyError, check

    try:
        report = check(f"{upper.strip().rstrip('，,；;')}\n{lower.strip()}", COUPLET, book=book)
    except ProsodyError as error:
        raise UserError(str(error)) from error
    if as_json:
        show.as_json_text(report.as_data())
        return
    out = show.console()
    out.print(_scansion(report))
    if report.parallelism is not None:
        show.line(f"对仗 parallelism: better than {report.parallelism:.0%} of lines matched at random")
    for finding in report.findings:
        out.print(_finding(finding))


def _reports(
    verses: list[str], form: str | None, pattern: str | None, book: str | None, field: str | None
) -> Iterator[tuple[Verse, Report]]:
    """Yield every verse with its report."""
    from tunesmith.prosody import Pattern, ProsodyError, check

    if form is not None and pattern is not None:
        raise UserError("--form and --pattern exclude each other: give one")
    try:
        wanted: str | Pattern | None = Pattern.parse(pattern) if pattern is not None else form
        for verse in _verses(verses, field):
            yield verse, check(verse.text, wanted, book=book)
    except ProsodyError as error:
        raise UserError(str(error)) from error


def _verses(verses: list[str], field: str | None) -> Iterator[Verse]:
    from tunesmith.prosody.verses import Verse, read_verses

    for number, given in enumerate(verses, start=1):
        if given == "-":
            yield Verse("-", sys.stdin.read())
        elif len(given) < 200 and Path(given).exists():
            yield from read_verses(Path(given), field)
        elif given.isascii():
            raise UserError(f"{given}: no such file or folder, and no verse either")
        else:
            yield Verse(f"[{number}]", given)


def _print_json(reports: Iterator[tuple[Verse, Report]]) -> None:
    for verse, report in reports:
        data = {"where": verse.where, **report.as_data()}
        sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")


def _scansion(report: Report) -> Text:
    """Return the verse line by line with its tones; what a finding names is marked."""
    verdict = "合律 regular" if report.strict else "从宽可 passes leniently" if report.lenient else "不合 broken"
    shown = Text()
    shown.append(" · ".join(part for part in (report.form or "体式不明", report.book, report.rhyme_group) if part))
    shown.append(f" · {verdict}\n", style="green" if report.strict else "yellow" if report.lenient else "red")
    marks = {
        (finding.line, finding.position): finding.severity
        for finding in sorted(report.findings, key=lambda finding: finding.severity == "fault")
        if finding.position
    }
    for number, line in enumerate(report.lines, start=1):
        shown.append("  ")
        for position, character in enumerate(line.text, start=1):
            shown.append(character, style=_STYLES.get(str(marks.get((number, position))), ""))
        shown.append("  ")
        for position, tone in enumerate(line.tones, start=1):
            severity = marks.get((number, position))
            style = "bold red" if severity == "fault" else {"平": "cyan", "仄": "magenta"}.get(tone, "dim")
            shown.append(f"[{tone}]" if severity == "fault" else tone, style=style)
        shown.append(" 韵" if line.rhyme else "", style="dim")
        shown.append("\n")
    shown.rstrip()
    return shown


def _finding(finding: Finding) -> Text:
    """Return a finding as text, with the reason in both languages."""
    shown = Text(f"{finding}", style=_STYLES[str(finding.severity)])
    shown.append(f"\n    {finding.why}\n    {finding.why_english}", style="dim")
    return shown
