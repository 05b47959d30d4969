"""The rules of verse as they are told: every example shows its rule, in both languages, with a source."""

from pathlib import Path

import pytest

from tunesmith.prosody import Rule, Severity, check, rule_texts
from tunesmith.prosody.ci import tunes
from tunesmith.run.verse_rules_page import verse_rules_page

every_rule = pytest.mark.parametrize("rule", list(Rule))


@every_rule
def test_the_example_of_a_rule_is_flagged_by_it(rule):
    text = rule_texts()[rule]
    report = check(text.example, text.form or None)

    assert rule in {finding.rule for finding in report.findings}
    # a note and what is tolerated stand in poems that are good otherwise
    if text.severity is Severity.NOTE and rule not in (Rule.PARALLELISM, Rule.THREE_OBLIQUE):
        assert report.strict
    elif text.severity is not Severity.FAULT and rule is not Rule.PARALLELISM:
        assert report.lenient


@every_rule
def test_a_rule_has_what_why_example_and_source_in_both_languages(rule):
    text = rule_texts()[rule]

    assert all((text.why_chinese, text.why_english, text.shown_chinese, text.shown_english, text.source))
    assert bool(text.exception_english) <= bool(text.exception)
    assert not set("一二三四五六七八九十") & set(text.exception_english)


def test_the_page_shows_every_rule_with_what_the_check_says():
    page = verse_rules_page()

    assert [rule for rule in Rule if f"\n## {rule}\n" not in page] == []
    assert "第3句第2字「君」 失粘：应仄，作平" in page
    assert "第1句第5字「藏」 罕用读音：应仄，作平" in page


@pytest.mark.parametrize("page", ["8-forms.md", "zh/8-forms.md"])
def test_the_guide_counts_the_tunes_that_are_there(page):
    text = (Path(__file__).parents[2] / "docs" / "guide" / page).read_text("utf-8")
    known = {id(forms): forms for forms in tunes().values()}.values()

    assert f"{len(known)} t" in text or f"{len(known)} 调" in text
    assert f"{sum(map(len, known))} forms" in text or f"{sum(map(len, known))} 体" in text


def test_the_patterns_of_the_guide_are_regular():
    """Its four patterns of a quatrain, written in characters of those tones."""
    text = (Path(__file__).parents[2] / "docs" / "guide" / "8-forms.md").read_text("utf-8")
    patterns = [line.split()[-1] for line in text.splitlines() if line.startswith(("仄起", "平起"))]

    assert len(patterns) == 4
    for pattern in patterns:
        findings = check(pattern.replace("平", "山").replace("仄", "海")).findings
        assert {finding.rule for finding in findings} <= {Rule.REPEATED_RHYME}
