"""Form, rhyme and metre of every poem, as labels (體式、韻部、格律)."""

from typing import Literal

from tunesmith.data.cleaning._base import AbstractEach, Log
from tunesmith.data.cleaning._tunes import known_tune
from tunesmith.data.poems import Poem
from tunesmith.prosody import COUPLET, FORMS, Report, Severity, check


class Form(AbstractEach):
    """Check each poem and write down its form, rhyme group and whether it keeps the metre (合律, 从宽 or 不合).

    A poem with a tune is checked against that tune.  What has no form keeps no label: old-style verse (古体) that has
    the shape of a regulated form is labelled with that form and 不合.
    """

    keep: Literal["all", "known", "lenient", "strict"] = "all"
    """Which poems stay: those of a known form, those that pass leniently, or those that break no rule."""

    def clean_one(self, poem: Poem, log: Log) -> Poem | None:
        report = report_of(poem)
        if report is None:
            log.note("tune is not known" if poem.tune else "no form that is known", poem, poem.tune or poem.text[:40])
            if self.keep != "all":
                log.drop("no form that is known", poem)
                return None
            return poem
        metre = "合律" if report.strict else "从宽" if report.lenient else "不合"
        log.counts[f"{report.form if report.form in (*FORMS, COUPLET) else '词'} {metre}"] += 1
        if (self.keep == "strict" and not report.strict) or (self.keep == "lenient" and not report.lenient):
            worst = min(report.findings, key=lambda finding: list(Severity).index(finding.severity))
            log.drop(f"breaks its form: {worst.name}", poem)
            return None
        return poem.changed(form=report.form, rhyme=report.rhyme_group, metre=metre)


def report_of(poem: Poem) -> Report | None:
    """Return what a check says about *poem*; ``None`` where it has no form that is known.

    A poem without a tune that has the lengths of a ci, or of a couplet, is one only if it obeys it.
    """
    if poem.tune:
        name = known_tune(poem.tune)
        return check(poem.text, name) if name else None
    report = check(poem.text)
    return report if report.form in FORMS or (report.form and report.lenient) else None
