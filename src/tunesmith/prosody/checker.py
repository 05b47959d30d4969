"""One door: check a verse, whatever its form."""

from __future__ import annotations

from tunesmith.prosody.books import CILIN, PINGSHUI, Book, find_book
from tunesmith.prosody.ci import check_tune, recognise_tune
from tunesmith.prosody.couplet import check_couplet, halves_of
from tunesmith.prosody.forms import COUPLET, FORMS, Form, lines_of, recognise
from tunesmith.prosody.pattern import Pattern, check_pattern
from tunesmith.prosody.readings import Readings, readings_for
from tunesmith.prosody.regulated import check_regulated, unknown_characters
from tunesmith.prosody.report import Report, ScannedLine
from tunesmith.prosody.rules import Finding, Rule
from tunesmith.prosody.text import Text, split_text


def check(text: str, form: str | Form | Pattern | None = None, *, book: str | Book | None = None) -> Report:
    """Check *text* against *form*, or against the form it has.

    *form* is the name of a regulated form, ``对联``, the name of a ci tune, or a pattern that you wrote
    (:class:`Pattern`); *book* is a rhyme book, by name too: left out, Cilin zhengyun for ci and Pingshui for all else.
    Traditional or simplified, with marks or without; nothing that can be typed makes it fail.  Raises
    :class:`ProsodyError` for a form or book that is not known.
    """
    found = split_text(text)
    if isinstance(book, str):
        book = find_book(book)
    if isinstance(form, str) and form not in FORMS and form != COUPLET:
        return check_tune(found, form, readings_for(text, book or CILIN))
    readings = readings_for(text, book or PINGSHUI)
    if isinstance(form, Pattern):
        return check_pattern(found, form, readings)
    if form == COUPLET:
        return check_couplet(found, readings)
    lines = lines_of(found)
    regulated = FORMS[form] if isinstance(form, str) else form or recognise(lines)
    if regulated is not None:
        return check_regulated(lines, regulated, readings)
    tune = recognise_tune(found)
    if tune is not None:
        return check_tune(found, tune, readings_for(text, book or CILIN))
    if halves_of(found) is not None:
        return check_couplet(found, readings)
    return _no_form(found, readings)


def _no_form(text: Text, readings: Readings) -> Report:
    """Return the tones of a verse that has no form we know."""
    shape = "、".join(str(len(clause)) for clause in text.clauses[:16])
    findings = [Finding(Rule.UNKNOWN_FORM, 0, 0, "", "", f"{shape}字" if shape else "空")]
    findings += unknown_characters(text.clauses, readings)
    lines = tuple(ScannedLine(clause, "", readings.tones(clause)) for clause in text.clauses)
    return Report("", lines, "", tuple(findings), readings)
