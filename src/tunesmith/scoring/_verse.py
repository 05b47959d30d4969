"""What the scores of verse share: which form was asked for, and where the answer departs from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator

from tunesmith.data.conversation import Conversation
from tunesmith.prosody import BOOKS, FORMS, Finding, Report, Rule, check, find_book
from tunesmith.prosody.couplet import check_pair, halves_of
from tunesmith.prosody.forms import lines_of
from tunesmith.prosody.readings import readings_for
from tunesmith.prosody.rules import rule_texts
from tunesmith.prosody.text import Text, split_text
from tunesmith.scoring._asked import Asked, Lengths, check_form, find_asked
from tunesmith.scoring._base import Scorer, Span
from tunesmith.scoring._places import find_places

# an answer so many times as long as its form is no attempt at it, and is not looked at
_FAR_TOO_LONG = 4
_FEW = 64
# the longest regulated verse has two hundred lines of seven
_LONGEST = 2000
# findings that a reason names
_SHOWN = 4


def check_book(name: str) -> str:
    """Return *name* if it is ``auto`` or a rhyme book; raise ``ValueError`` that says which there are."""
    return name if name == "auto" else find_book(name).name


@dataclass(frozen=True)
class Checked:
    """An answer held against what was asked."""

    asked: Asked
    report: Report
    answer: str
    found: Lengths
    """Lengths of the lines, as the form cuts them."""
    wanted: Lengths
    """The lengths asked for that come nearest."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is to be said about the answer; of a couplet whose upper line was given, about the lower line."""
        if not self.asked.upper:
            return self.report.findings
        given = (Rule.COUPLET_UPPER_END, Rule.UNKNOWN_CHARACTER)
        return tuple(f for f in self.report.findings if f.line != 1 or f.rule not in given)

    def spans(self, findings: Sequence[Finding]) -> tuple[Span, ...]:
        """Return the places of *findings* in the answer; what concerns the whole verse has none."""
        lines = [line.text for line in self.report.lines]
        if self.asked.upper:
            # a repetition that the upper line does not mirror is told of it; the lower one is there to be changed
            places = [(), *find_places(self.answer, lines[1:])]
            where = [(max(finding.line, 2), finding) for finding in findings]
        else:
            places = list(find_places(self.answer, lines))
            where = [(finding.line, finding) for finding in findings if finding.line]
        return tuple(span for line, finding in where if (span := _span(finding, places, line)))


def _span(finding: Finding, places: Sequence[Sequence[int]], line: int) -> Span | None:
    offsets = places[line - 1] if line <= len(places) else ()
    if finding.position:
        offsets = offsets[finding.position - 1 : finding.position]
    if not offsets:
        return None
    return Span(offsets[0], offsets[-1] + 1, say_finding(finding), str(finding))


def say_finding(finding: Finding) -> str:
    """Return what a finding says, in English: the rule, the line, and what is wanted."""
    said = rule_texts()[finding.rule].english
    if finding.line:
        said += f" (line {finding.line})"
    wanted = finding.expected.replace("字", " characters").replace("句", " lines")
    return f"{said}: {wanted} wanted" if wanted else said


def say_findings(findings: Sequence[Finding]) -> str:
    """Return the first findings in English, and how many more there are."""
    more = f" and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
    said = [f"{finding.character} {say_finding(finding)}".strip() for finding in findings[:_SHOWN]]
    return "; ".join(said) + more


class AbstractVerse(Scorer):
    """A score of verse: knows the form that was asked for."""

    book: Annotated[str, AfterValidator(check_book)] = "auto"
    """Rhyme book: 平水韵, 词林正韵, 中华新韵 or 中华通韵; auto takes 词林正韵 for ci and 平水韵 for all else."""

    def form_setting(self) -> str:
        """Return the form that the settings fix; ``auto`` where they leave it to the conversation."""
        return "auto"

    def asked(self, conversation: Conversation) -> Asked | None:
        """Return what *conversation* asks for; ``None`` where neither setting, prompt nor reference tells."""
        prompt = conversation.prompt()
        question = prompt[-1].content if prompt else ""
        return find_asked(self.form_setting(), question, conversation.reference())

    def check_answer(self, conversation: Conversation, answer: str) -> Checked | str:
        """Return *answer* held against what was asked, or why it cannot be."""
        return hold_against(self.asked(conversation), answer, self.book)


@lru_cache(maxsize=4096)
def hold_against(asked: Asked | None, answer: str, book: str) -> Checked | str:
    """Return *answer* held against what was asked, or why it cannot be; kept, as several scores ask for the same."""
    text = split_text(answer)
    if not text.clauses:
        return "the answer is empty"
    size = sum(map(len, text.clauses))
    if size > _LONGEST:
        return f"{size} characters are no verse"
    asked = asked or find_asked("auto", "", answer)
    if asked is None:
        return "no form was asked for, and the answer has none"
    if size > _FEW + _FAR_TOO_LONG * max(map(sum, asked.lengths), default=size):
        return f"{size} characters are no {asked.name}"
    found = found_lengths(asked, text)
    wanted = nearest(found, asked.lengths) if asked.lengths else open_lengths(asked, text)
    return Checked(asked, _report(asked, text, answer, book), answer, found, wanted)


def _report(asked: Asked, text: Text, answer: str, book_name: str) -> Report:
    book = None if book_name == "auto" else BOOKS[book_name]
    if asked.upper:
        upper = split_text(asked.upper).clauses
        both = asked.upper + answer
        return check_pair(upper, text.clauses, readings_for(both) if book is None else readings_for(both, book))
    return check(answer, asked.form or None, book=book)


class AbstractFormVerse(AbstractVerse):
    """A score of verse in any form, which a setting may fix."""

    form: Annotated[str, AfterValidator(check_form)] = "auto"
    """五绝, 七律, 对联, a tune (浣溪沙), a pattern of 平 仄 中 韵; auto: prompt, else reference, else answer tell."""

    def form_setting(self) -> str:
        """Return the setting."""
        return self.form


def found_lengths(asked: Asked, text: Text) -> Lengths:
    """Return the lengths of the answer's lines, without a title, cut as the form has them where there are no marks."""
    if isinstance(asked.form, str) and asked.form in FORMS:
        return tuple(map(len, lines_of(text)))
    lengths = tuple(map(len, text.clauses))
    if len(lengths) > 1 and text.clauses[0] == asked.form and lengths not in asked.lengths:
        lengths = lengths[1:]
    if len(lengths) == 1:
        return next((each for each in asked.lengths if sum(each) == lengths[0]), lengths)
    return lengths


def open_lengths(asked: Asked, text: Text) -> Lengths:
    """Return the lengths that a form of no fixed number of lines asks of *text*."""
    if isinstance(asked.form, str) and asked.form in FORMS:
        count = len(lines_of(text))
        return (FORMS[asked.form].length,) * max(10, count + count % 2)
    halves = halves_of(text)
    if halves is None:
        return (sum(map(len, text.clauses)),) * 2
    return tuple(map(len, halves[0])) * 2


def nearest(found: Lengths, allowed: Sequence[Lengths]) -> Lengths:
    """Return the one of *allowed* that *found* comes nearest to."""
    return min(allowed, key=lambda wanted: distance(found, wanted))


def distance(found: Lengths, wanted: Lengths) -> int:
    """Return how many characters are missing or too many, line by line."""
    short = min(len(found), len(wanted))
    return sum(abs(f - w) for f, w in zip(found, wanted, strict=False)) + sum(found[short:]) + sum(wanted[short:])


def say_lengths(lengths: Lengths) -> str:
    """Return ``7, 7, 7, 7``, cut after twelve."""
    return ", ".join(map(str, lengths[:12])) + (", …" if len(lengths) > 12 else "") if lengths else "none"
