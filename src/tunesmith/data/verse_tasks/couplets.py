"""Instructions about couplets (对联)."""

from tunesmith.data.poems import Poem
from tunesmith.data.verse_tasks._task import Asked, Task, sentences_of
from tunesmith.prosody import Report


def _lower(poem: Poem, report: Report) -> Asked:
    upper, lower = sentences_of(poem)
    return Asked(lower, upper, {"count": str(len(report.lines[0].text))})


def _upper(poem: Poem, report: Report) -> Asked:
    upper, lower = sentences_of(poem)
    return Asked(upper, lower, {"count": str(len(report.lines[0].text))})


COUPLET_TASKS = {
    "lower": Task(
        "the upper line, the lower is asked for",
        (
            "请对出下联。",
            "根据上联，对出下联。",
            "上联如下，请写出与之相对的下联。",
            "给出上联，请对下联，要求字数相等、平仄相对、词性相当。",
            "请为这条{count}字上联对一条下联。",
        ),
        _lower,
    ),
    "upper": Task(
        "the lower line, the upper is asked for",
        ("请根据下联补出上联。", "下联如下，请写出上联。", "已有下联，请拟一条与之相对的上联。"),
        _upper,
    ),
}
