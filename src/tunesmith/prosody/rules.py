"""The rules of verse: name, what, why, example, exception and source of each, in Chinese and English."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files


class Severity(StrEnum):
    """What a departure from a rule means for the verdict."""

    FAULT = "fault"
    """Neither the strict nor the lenient verdict lets it pass."""
    TOLERATED = "tolerated"
    """Good poets did it now and then: the lenient verdict lets it pass."""
    NOTE = "note"
    """Allowed, and worth knowing."""


class Rule(StrEnum):
    """The rules a finding can name; their texts stand in ``data/rules.toml``."""

    # form
    LENGTH = "length"
    LINE_COUNT = "line_count"
    UNKNOWN_FORM = "unknown_form"
    UNKNOWN_CHARACTER = "unknown_character"
    # metre
    OFF_TONE = "off_tone"
    UPPER_END = "upper_end"
    RHYME_TONE = "rhyme_tone"
    COUNTER = "counter"
    ADHESION = "adhesion"
    LONE_LEVEL = "lone_level"
    THREE_LEVEL = "three_level"
    GREAT_TWIST = "great_twist"
    SMALL_TWIST = "small_twist"
    SELF_RESCUE = "self_rescue"
    SWAPPED = "swapped"
    THREE_OBLIQUE = "three_oblique"
    RARE_READING = "rare_reading"
    OBLIQUE_RHYME = "oblique_rhyme"
    # rhyme
    OFF_RHYME = "off_rhyme"
    NEIGHBOUR_RHYME = "neighbour_rhyme"
    FIRST_NEIGHBOUR = "first_neighbour"
    REPEATED_RHYME = "repeated_rhyme"
    # couplets
    COUPLET_LENGTH = "couplet_length"
    COUPLET_PUNCTUATION = "couplet_punctuation"
    COUPLET_UPPER_END = "couplet_upper_end"
    COUPLET_LOWER_END = "couplet_lower_end"
    SAME_CHARACTER = "same_character"
    REPETITION = "repetition"
    OPPOSITION = "opposition"
    PARALLELISM = "parallelism"


@dataclass(frozen=True)
class RuleText:
    """What is told about one rule."""

    chinese: str
    english: str
    severity: Severity
    why_chinese: str
    why_english: str
    example: str
    """Verse that the rule is found in."""
    shown_chinese: str
    """What to see in the example, and whose it is."""
    shown_english: str
    exception: str
    exception_english: str
    source: str
    form: str = ""
    """Form that the example is checked as; empty where it is recognised."""


@cache
def rule_texts() -> dict[Rule, RuleText]:
    """Return the texts of all rules."""
    text = (files("tunesmith.prosody") / "data" / "rules.toml").read_text("utf-8")
    return {
        Rule(name): RuleText(**{**entry, "severity": Severity(entry["severity"])})
        for name, entry in tomllib.loads(text).items()
    }


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about a verse: which rule, where, what it asks for and what stands there."""

    rule: Rule
    line: int
    """1-based; 0 for the whole verse."""
    position: int
    """1-based place in the line; 0 for the whole line."""
    character: str
    expected: str
    found: str

    @property
    def severity(self) -> Severity:
        return rule_texts()[self.rule].severity

    @property
    def why(self) -> str:
        """The reason, in Chinese."""
        return rule_texts()[self.rule].why_chinese

    @property
    def why_english(self) -> str:
        return rule_texts()[self.rule].why_english

    @property
    def name(self) -> str:
        """The rule's Chinese name."""
        return rule_texts()[self.rule].chinese

    def as_data(self) -> dict[str, object]:
        """Return the finding as JSON-ready data."""
        text = rule_texts()[self.rule]
        return {
            "rule": str(self.rule),
            "name": text.chinese,
            "english": text.english,
            "severity": str(text.severity),
            "line": self.line,
            "position": self.position,
            "character": self.character,
            "expected": self.expected,
            "found": self.found,
            "why": text.why_chinese,
            "why_english": text.why_english,
        }

    def __str__(self) -> str:
        where = f"第{self.line}句" if self.line else "全篇"
        place = f"第{self.position}字「{self.character}」" if self.position else ""
        wanted = f"：应{self.expected}" if self.expected else ""
        have = f"，作{self.found}" if self.found else ""
        return f"{where}{place} {self.name}{wanted}{have}"
