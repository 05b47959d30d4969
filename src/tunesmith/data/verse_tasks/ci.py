"""Instructions about ci (词), each by its tune."""

from tunesmith.data.poems import Poem
from tunesmith.data.verse_tasks._task import NAMELESS, Asked, Task, sentences_of, theme_of
from tunesmith.prosody import Report


def _tune(poem: Poem, report: Report) -> Asked:
    return Asked(poem.text, values={"tune": report.form})


def _theme(poem: Poem, report: Report) -> Asked | None:
    theme = theme_of(poem)
    return Asked(poem.text, values={"tune": report.form, "theme": theme}) if theme and theme != poem.tune else None


def _style(poem: Poem, report: Report) -> Asked | None:
    if poem.author in NAMELESS:
        return None
    return Asked(poem.text, values={"tune": report.form, "author": poem.author})


def _first_line(poem: Poem, report: Report) -> Asked:
    return Asked(poem.text, report.lines[0].text, {"tune": report.form})


def _continuation(poem: Poem, report: Report) -> Asked | None:
    lines = sentences_of(poem)
    half = len(lines) // 2
    if not half:
        return None
    return Asked("\n".join(lines[half:]), "\n".join(lines[:half]), {"tune": report.form})


def _pattern(poem: Poem, report: Report) -> Asked | None:
    if not all(line.pattern for line in report.lines):
        return None
    pattern = "".join(f"{line.pattern}{'韵。' if line.rhyme else '，'}" for line in report.lines)
    return Asked(poem.text, pattern, {"tune": report.form})


CI_TASKS = {
    "tune": Task(
        "the tune alone",
        (
            "请填一首《{tune}》。",
            "以“{tune}”为词牌，填词一首。",
            "按词牌{tune}的格律写一首词。",
            "词牌：{tune}\n请填词。",
        ),
        _tune,
    ),
    "theme": Task(
        "a tune and a theme, where the ci has a title",
        ("以“{theme}”为题，填一首《{tune}》。", "词牌：{tune}\n题目：{theme}\n请填词。", "请用{tune}词牌写“{theme}”。"),
        _theme,
    ),
    "style": Task(
        "a tune and an author's style",
        (
            "模仿{author}的风格，填一首《{tune}》。",
            "请仿{author}作词一首，调寄{tune}。",
            "假如你是{author}，请填《{tune}》一阕。",
        ),
        _style,
    ),
    "first_line": Task(
        "a tune and the first line, the whole ci is asked for",
        ("首句如下，请续成一首《{tune}》。", "以下面这句开头，填一首{tune}。", "请以所给的一句起笔，按{tune}填词。"),
        _first_line,
    ),
    "continuation": Task(
        "the first half, the rest is asked for",
        ("下面是一首《{tune}》的前半，请续完。", "请补出这首{tune}余下的部分。", "按{tune}的格律续写这首词。"),
        _continuation,
    ),
    "pattern": Task(
        "a tune and its pattern of tones and rhymes",
        (
            "按下面的平仄谱填一首《{tune}》（中：可平可仄；韵：押韵）。",
            "词牌{tune}，谱如下，“中”可平可仄，“韵”处押韵。请填词。",
        ),
        _pattern,
    ),
}
