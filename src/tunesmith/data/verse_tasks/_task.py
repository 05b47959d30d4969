"""One kind of instruction, and what it needs of a poem."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from tunesmith.data.poems import Poem
from tunesmith.prosody import Report

# what is no theme: lost titles, numbers of a series, tunes and generic titles
_NO_THEME = re.compile(r"[句诗詩偈颂頌]?|[失无無缺闕阙佚][题題]|残句|殘句|同前|.*[○□].*")
_SERIES = re.compile(r"[ 　]*(?:其?[一二三四五六七八九十百〇]+|[一二三四五六七八九十百〇]+首)$")
_LONGEST_THEME = 14
NAMELESS = ("無名氏", "无名氏", "佚名", "不詳", "不详", "")


@dataclass(frozen=True, slots=True)
class Asked:
    """What fills an instruction's gaps, what goes with it, and what is to be answered."""

    output: str
    input: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of instruction."""

    summary: str
    wordings: tuple[str, ...]
    """Texts with ``{gaps}`` that ``make`` fills."""
    make: Callable[[Poem, Report], Asked | None]
    """Return what is asked about a poem; ``None`` where it lacks what is needed."""

    def example(self, poem: Poem, report: Report, chance: Random) -> dict[str, str] | None:
        """Return one record with instruction, input and output."""
        asked = self.make(poem, report)
        if asked is None:
            return None
        wording = chance.choice(self.wordings)
        return {"instruction": wording.format(**asked.values), "input": asked.input, "output": asked.output}


def theme_of(poem: Poem) -> str | None:
    """Return the theme that a title names; ``None`` where it names none."""
    title = poem.title.strip()
    while (shorter := _SERIES.sub("", title)) != title:
        title = shorter
    return None if _NO_THEME.fullmatch(title) or len(title) > _LONGEST_THEME else title


def sentences_of(poem: Poem) -> list[str]:
    """Return the lines of the text as they are printed."""
    return poem.text.split("\n")
