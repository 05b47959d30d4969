"""Instructions about regulated poems (律诗、绝句)."""

from tunesmith.data.poems import Poem
from tunesmith.data.verse_tasks._task import NAMELESS, Asked, Task, sentences_of, theme_of
from tunesmith.prosody import FORMS, Report

_FORM_NAMES = {"五绝": "五言绝句", "七绝": "七言绝句", "五律": "五言律诗", "七律": "七言律诗"}


def _form(report: Report) -> dict[str, str]:
    form = FORMS[report.form]
    count = "" if form.lines == 0 else f"，共{form.lines}句，每句{form.length}字"
    return {"form": _FORM_NAMES.get(report.form, report.form), "short": report.form, "shape": count}


def _theme(poem: Poem, report: Report) -> Asked | None:
    theme = theme_of(poem)
    return Asked(poem.text, values={**_form(report), "theme": theme}) if theme else None


def _rhyme(poem: Poem, report: Report) -> Asked | None:
    theme = theme_of(poem)
    if not report.rhyme_group or not theme:
        return None
    group = report.rhyme_group.lstrip("一二三四五六七八九十")
    return Asked(poem.text, values={**_form(report), "theme": theme, "group": group, "numbered": report.rhyme_group})


def _rhyme_words(poem: Poem, report: Report) -> Asked:
    words = "、".join(line.text[-1] for line in report.lines if line.rhyme)
    return Asked(poem.text, words, _form(report))


def _style(poem: Poem, report: Report) -> Asked | None:
    theme = theme_of(poem)
    if poem.author in NAMELESS or not theme:
        return None
    return Asked(poem.text, values={**_form(report), "theme": theme, "author": poem.author})


def _first_line(poem: Poem, report: Report) -> Asked:
    return Asked(poem.text, report.lines[0].text, _form(report))


def _continuation(poem: Poem, report: Report) -> Asked | None:
    lines = sentences_of(poem)
    half = len(lines) // 2
    if not half or len(lines) % 2:
        return None
    return Asked("\n".join(lines[half:]), "\n".join(lines[:half]), _form(report))


def _acrostic(poem: Poem, report: Report) -> Asked:
    return Asked(poem.text, "".join(line.text[0] for line in report.lines), _form(report))


def _next_line(_: Poem, report: Report) -> Asked | None:
    """Ask for the lower line of the second couplet of an octave, which is parallel."""
    if len(report.lines) != 8:
        return None
    return Asked(report.lines[3].text, report.lines[2].text, _form(report))


def _title(poem: Poem, report: Report) -> Asked | None:
    theme = theme_of(poem)
    return Asked(theme, poem.text, _form(report)) if theme else None


POEM_TASKS = {
    "theme": Task(
        "a theme and a form, from the title",
        (
            "以“{theme}”为题，写一首{form}。",
            "请写一首{short}，题为《{theme}》。",
            "请以《{theme}》为题作{form}一首{shape}。",
            "题目：{theme}\n体裁：{form}\n请作诗。",
            "围绕“{theme}”创作一首{form}，要求合乎格律。",
        ),
        _theme,
    ),
    "rhyme": Task(
        "a theme, a form and a rhyme of the Pingshui book",
        (
            "以“{theme}”为题，写一首{form}，押平水韵“{group}”韵。",
            "请用平水韵{numbered}作{short}一首，题为《{theme}》。",
            "作一首{form}，题目是“{theme}”，韵脚限“{group}”部。",
        ),
        _rhyme,
    ),
    "rhyme_words": Task(
        "the rhyme words in their order (限韵字)",
        ("用下面的字依次作韵脚，写一首{form}。", "限韵作{short}一首，韵字依次如下。", "请按所给韵脚字的次序作{form}。"),
        _rhyme_words,
    ),
    "style": Task(
        "an author's style and a theme",
        (
            "模仿{author}的风格，以“{theme}”为题写一首{form}。",
            "请仿{author}作{short}《{theme}》。",
            "假如你是{author}，请以《{theme}》为题赋{form}一首。",
        ),
        _style,
    ),
    "first_line": Task(
        "the first line, the whole poem is asked for",
        ("首句如下，请续成一首{form}。", "以下面这句开头，写一首{short}。", "请以所给的一句为首句作{form}{shape}。"),
        _first_line,
    ),
    "continuation": Task(
        "the first half, the second is asked for",
        ("下面是一首{form}的前半，请续完。", "请补出这首{short}的后半首。", "续写这首{form}，注意平仄与押韵。"),
        _continuation,
    ),
    "acrostic": Task(
        "the first characters of the lines (藏头)",
        (
            "写一首{form}，各句的首字依次如下。",
            "请作藏头{short}，所藏之字如下。",
            "以下列各字为每句第一个字，作{form}一首。",
        ),
        _acrostic,
    ),
    "next_line": Task(
        "the third line of an octave, the parallel fourth is asked for",
        (
            "这是{form}颔联的出句，请对出下句。",
            "请为下面这句诗对出工整的下句。",
            "对句：字数相同，平仄相对，词性相当。",
        ),
        _next_line,
    ),
    "title": Task(
        "the poem, its title is asked for",
        ("请为下面这首{form}拟一个题目。", "这首诗该题作什么？", "读下面的{short}，写出合适的诗题。"),
        _title,
    ),
}
