"""Verse: tones, rhymes, forms.  No torch, no other part of the package."""

from tunesmith.prosody.books import BOOKS, Book, find_book
from tunesmith.prosody.checker import check
from tunesmith.prosody.errors import ProsodyError
from tunesmith.prosody.forms import COUPLET, FORMS, Form
from tunesmith.prosody.pattern import Pattern
from tunesmith.prosody.readings import Reading, Tier, readings, readings_for
from tunesmith.prosody.report import Report, ScannedLine
from tunesmith.prosody.rules import Finding, Rule, Severity, rule_texts

__all__ = [
    "BOOKS",
    "COUPLET",
    "FORMS",
    "Book",
    "Finding",
    "Form",
    "Pattern",
    "ProsodyError",
    "Reading",
    "Report",
    "Rule",
    "ScannedLine",
    "Severity",
    "Tier",
    "check",
    "find_book",
    "readings",
    "readings_for",
    "rule_texts",
]
