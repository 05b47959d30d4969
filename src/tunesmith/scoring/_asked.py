"""Which form of verse a conversation asks for: said by a setting, by the prompt, or by the reference's shape."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tunesmith.prosody import COUPLET, FORMS, Pattern, Rule, check
from tunesmith.prosody.ci import find_tune, tunes
from tunesmith.prosody.text import split_text

Lengths = tuple[int, ...]

_PATTERN = re.compile(r"[平仄中韵换○●◎⊙+\-|，。、；？！,.;?!\s]+")


def check_form(name: str) -> str:
    """Return *name* if it is ``auto``, a form, a tune or a pattern; raise ``ValueError`` that says what would be."""
    if name != "auto":
        read_form_name(name)
    return name


def read_form_name(name: str) -> str | Pattern:
    """Return the form that *name* stands for; raise ``ValueError`` for none."""
    if name in FORMS or name == COUPLET:
        return name
    if _PATTERN.fullmatch(name):
        return Pattern.parse(name)
    find_tune(name)
    return name


@dataclass(frozen=True)
class Asked:
    """What the answer should be."""

    form: str | Pattern
    """Empty where only the line lengths are known."""
    lengths: tuple[Lengths, ...] = ()
    """Each a way to cut the lines that will do; none where the form leaves them open."""
    upper: str = ""
    """Upper line of a couplet, to which the answer is the lower one."""

    @property
    def name(self) -> str:
        """What to call it."""
        if isinstance(self.form, Pattern):
            return "the pattern"
        return self.form or "the reference's shape"


@lru_cache(maxsize=8192)
def find_asked(form: str, question: str, reference: str) -> Asked | None:
    """Return what was asked: by the setting *form*, else by *question*, else by the shape of *reference*."""
    if form != "auto":
        return as_asked(read_form_name(form), question)
    if name := form_in(question):
        return as_asked(name, question)
    text = split_text(reference)
    if not text.clauses:
        return None
    report = check(reference)
    if report.form and all(finding.rule is not Rule.COUPLET_LENGTH for finding in report.findings):
        return as_asked(report.form, question)
    return Asked("", (tuple(map(len, text.clauses)),))


def as_asked(form: str | Pattern, question: str) -> Asked:
    """Return a form with the line lengths it allows, and the upper line where it is a couplet."""
    if isinstance(form, Pattern):
        return Asked(form, (tuple(map(len, form.lines)),))
    if form == COUPLET:
        upper = upper_line(question)
        clauses = split_text(upper).clauses
        return Asked(form, (tuple(map(len, clauses)),) if clauses else (), upper if clauses else "")
    if form in FORMS:
        shape = FORMS[form]
        return Asked(form, ((shape.length,) * shape.lines,) if shape.lines else ())
    return Asked(form, tuple(dict.fromkeys(tuple(map(len, pattern.lines)) for pattern in find_tune(form))))


_REGULATED = {
    "五绝": "五[言]?[绝絕]句?",
    "七绝": "七[言]?[绝絕]句?",
    "五言排律": "五言排律|五排",
    "七言排律": "七言排律|七排",
    "五律": "五[言]?律诗?",
    "七律": "七[言]?律诗?",
}
_TUNE_NEAR = re.compile(r"[词詞填调調]|tune|\bci\b")
_BRACKETED = re.compile(r"[《〈「『【“\"]([^》〉」』】”\"]{2,8})[》〉」』】”\"]")
_COUPLET = re.compile(r"[上下]联|[上下]聯|对联|對聯|对出|對出|对句|對句|couplet")


def form_in(question: str) -> str:
    """Return the form that *question* names: a regulated one, a tune, or the couplet; empty if it names none."""
    if _TUNE_NEAR.search(question):
        named = [name for name in _BRACKETED.findall(question) if name in tunes()]
        named = named or sorted((name for name in tunes() if name in question), key=len)
        if named:
            return str(named[-1])
    for name, words in _REGULATED.items():
        if re.search(words, question):
            return name
    return COUPLET if _COUPLET.search(question) else ""


_UPPER = re.compile(r"上[联聯](?:是|为|為)?[:：\s]*[“\"「『《]?([^”\"」』》\n]+)")
_QUOTED = re.compile(r"[“\"「『《]([^”\"」』》\n]+)[”\"」』》]")


def upper_line(question: str) -> str:
    """Return the upper line that *question* gives: after 上联, in quotation marks, or its last line; may be empty."""
    for found in (_UPPER.search(question), _QUOTED.search(question)):
        if found and split_text(found[1]).clauses:
            return str(re.split(r"[。！？!?；;]|[，,](?=[请請对對写寫])", found[1].strip())[0])
    lines = [line.strip() for line in question.splitlines() if line.strip()]
    if not lines:
        return ""
    head, colon, tail = lines[-1].replace(":", "：").rpartition("：")
    if len(lines) == 1 and not colon:
        return ""
    return (tail if colon else head + tail).strip("。！？!?；; ")
