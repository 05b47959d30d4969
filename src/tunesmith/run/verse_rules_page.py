"""The reference page of the rules of verse, written from ``prosody/data/rules.toml`` and what a check says of them."""

from collections.abc import Iterator

from tunesmith.prosody import Rule, Severity, check, rule_texts

_SEVERITIES = {
    Severity.FAULT: "a fault: neither verdict lets it pass",
    Severity.TOLERATED: "tolerated: the lenient verdict lets it pass",
    Severity.NOTE: "a note: allowed, and worth knowing",
}


def verse_rules_page() -> str:
    """Return the page as Markdown: what, why, example, exception and source of every rule."""
    parts = [
        "# Rules of verse",
        "What `tunesmith verse check` looks for, in Chinese and English. For tones, books and forms see the "
        "[guide to the forms](../guide/8-forms.md). Each example is shown with what the check says about it.",
        _contents(),
    ]
    for rule in Rule:
        parts += _rule(rule)
    return "\n\n".join(parts)


def _contents() -> str:
    rows = ["| rule | 规则 | |", "|---|---|---|"]
    for rule, text in rule_texts().items():
        rows.append(f"| [{text.english}](#{rule}) | {text.chinese} | {text.severity} |")
    return "\n".join(rows)


def _rule(rule: Rule) -> Iterator[str]:
    text = rule_texts()[rule]
    yield f"## {rule}"
    yield f"**{text.chinese}** · {text.english} · {_SEVERITIES[text.severity]}"
    yield f"{text.why_chinese}  \n{text.why_english}"
    form = f" --form {text.form}" if text.form else ""
    said = next(str(finding) for finding in check(text.example, text.form or None).findings if finding.rule is rule)
    shown = text.example.replace("\n", "；")
    yield f"```text\n$ tunesmith verse check '{shown}'{form}\n{said}\n```"
    yield f"{text.shown_chinese}  \n{text.shown_english}"
    if text.exception:
        english = f"  \nExcept: {text.exception_english}" if text.exception_english else ""
        yield f"例外：{text.exception}{english}"
    if text.source:
        yield f"Source: {text.source}"
