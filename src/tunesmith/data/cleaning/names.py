"""Authors and dynasties under one name each (朝代、作者)."""

import re
from typing import ClassVar

from tunesmith.data.cleaning._base import AbstractEach, Log
from tunesmith.data.poems import Poem
from tunesmith.prosody.readings import readings_for

_DYNASTIES = {
    **dict.fromkeys(("唐", "唐代", "唐朝", "tang"), "唐"),
    **dict.fromkeys(("宋", "宋代", "宋朝", "北宋", "南宋", "song"), "宋"),
    **dict.fromkeys(("五代", "五代十国", "五代十國"), "五代"),
    **dict.fromkeys(("元", "元代", "元朝", "yuan"), "元"),
    **dict.fromkeys(("明", "明代", "明朝", "ming"), "明"),
    **dict.fromkeys(("清", "清代", "清朝", "qing"), "清"),
}
# emperors by their own names; one name for those whose name is lost
_AUTHORS = {
    **dict.fromkeys(("太宗皇帝", "太宗皇帝李世民", "唐太宗"), "李世民"),
    **dict.fromkeys(("高宗皇帝", "高宗皇帝李治", "唐高宗"), "李治"),
    **dict.fromkeys(("明皇帝", "玄宗皇帝", "玄宗皇帝李隆基", "唐玄宗"), "李隆基"),
    **dict.fromkeys(("徽宗皇帝", "宋徽宗"), "趙佶"),
    **dict.fromkeys(("佚名", "闕名", "阙名", "失名", "不詳", "不详", "未知", "无名氏", "無名氏"), "無名氏"),
}
_SIMPLIFIED = {"趙佶": "赵佶", "無名氏": "无名氏"}
# files of usual collections; the folder 全唐诗 of one holds Song poems too
_FILE = re.compile(r"poet\.(tang|song)\.")
_FOLDER = re.compile(r"(?:^|/)全?(唐|宋|元)[诗詩词詞曲](?:/|$)")
_NOTE = re.compile(r"[（(〖\[].*$")


class Names(AbstractEach):
    """Give every poem one form of its dynasty and author; titles lose double spaces, and ○ for a zero becomes 〇.

    A poem without dynasty takes it from the names of files of usual collections (``poet.tang.0.json``, 宋词).  Notes
    beside a name go; monks are 釋 with their name; emperors have their own names; lost names are 無名氏.
    """

    places: ClassVar[tuple[str, ...]] = ("src", "source", "where")

    def clean_one(self, poem: Poem, log: Log) -> Poem:
        dynasty = _DYNASTIES.get(poem.dynasty.strip().lower(), poem.dynasty.strip()) or self._place(poem)
        author = _author(poem.author, simplified=readings_for(poem.text).simplified)
        title = re.sub(r"(?<=[其第一二三四五六七八九十百之])○|○(?=[一二三四五六七八九])", "〇", poem.title)
        title = re.sub(r"\s+", " ", title).strip()
        for what, before, after in (
            ("dynasty", poem.dynasty, dynasty),
            ("author", poem.author, author),
            ("title", poem.title, title),
        ):
            if before != after:
                log.note(f"{what} {'under one name' if before else 'filled in'}", poem, before, after)
        return poem.changed(dynasty=dynasty, author=author, title=title)

    def _place(self, poem: Poem) -> str:
        for text in (*(str(poem.extra.get(name, "")) for name in self.places), poem.where):
            found = _FILE.search(text) or _FOLDER.search(text)
            if found:
                return _DYNASTIES[found[1]]
        return ""


def _author(name: str, *, simplified: bool) -> str:
    bare = re.sub(r"\s+", "", _NOTE.sub("", name))
    known = _AUTHORS.get(bare)
    if known is not None:
        return _SIMPLIFIED.get(known, known) if simplified else known
    if re.fullmatch(r"[僧释釋][㐀-鿿]{2}", bare):
        return ("释" if simplified or bare[0] == "释" else "釋") + bare[1:]
    return bare
