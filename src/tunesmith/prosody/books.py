"""Rhyme books: which rhymes go together, from the 206 of Guangyun and from the finals of Mandarin."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tunesmith.prosody.errors import ProsodyError

# Pingshui (平水韵, 1252): tone, then its rhymes, each followed by the Guangyun rhymes it merged
_PINGSHUI = {
    "上平": (
        "一東:東 二冬:冬鍾 三江:江 四支:支脂之 五微:微 六魚:魚 七虞:虞模 八齊:齊 九佳:佳皆 十灰:灰咍 十一真:真諄臻 "
        "十二文:文欣 十三元:元魂痕 十四寒:寒桓 十五刪:刪山"
    ),
    "下平": (
        "一先:先仙 二蕭:蕭宵 三肴:肴 四豪:豪 五歌:歌戈 六麻:麻 七陽:陽唐 八庚:庚耕清 九青:青 十蒸:蒸登 十一尤:尤侯幽 "
        "十二侵:侵 十三覃:覃談 十四鹽:鹽添嚴 十五咸:咸銜凡"
    ),
    "上": (
        "一董:董 二腫:腫 三講:講 四紙:紙旨止 五尾:尾 六語:語 七麌:麌姥 八薺:薺 九蟹:蟹駭 十賄:賄海 十一軫:軫準 "
        "十二吻:吻隱 十三阮:阮混很 十四旱:旱緩 十五潸:潸產 十六銑:銑獮 十七篠:篠小 十八巧:巧 十九皓:晧 二十哿:哿果 "
        "二十一馬:馬 二十二養:養蕩 二十三梗:梗耿靜 二十四迥:迥拯等 二十五有:有厚黝 二十六寢:寑 二十七感:感敢 "
        "二十八儉:琰忝儼 二十九豏:豏檻范"
    ),
    "去": (
        "一送:送 二宋:宋用 三絳:絳 四寘:寘至志 五未:未 六御:御 七遇:遇暮 八霽:霽祭 九泰:泰 十卦:卦怪夬 十一隊:隊代廢 "
        "十二震:震稕 十三問:問焮 十四願:願慁恨 十五翰:翰換 十六諫:諫襇 十七霰:霰線 十八嘯:嘯笑 十九效:效 二十號:号 "
        "二十一箇:箇過 二十二禡:禡 二十三漾:漾宕 二十四敬:映諍勁 二十五徑:徑證嶝 二十六宥:宥候幼 二十七沁:沁 "
        "二十八勘:勘闞 二十九豔:豔㮇釅 三十陷:陷鑑梵"
    ),
    "入": (
        "一屋:屋 二沃:沃燭 三覺:覺 四質:質術櫛 五物:物迄 六月:月沒 七曷:曷末 八黠:黠鎋 九屑:屑薛 十藥:藥鐸 "
        "十一陌:陌麥昔 十二錫:錫 十三職:職德 十四緝:緝 十五合:合盍 十六葉:葉怗業 十七洽:洽狎乏"
    ),
}

# Cilin zhengyun (词林正韵, 1821): the parts by their Guangyun rhymes; 平 | 上去 (or 入 alone)
_CILIN = (
    "東冬鍾|董腫送宋用",
    "江陽唐|講養蕩絳漾宕",
    "支脂之微齊灰|紙旨止尾薺賄寘至志未霽祭廢隊",
    "魚虞模|語麌姥御遇暮",
    "佳皆咍|蟹駭海泰卦怪夬代",
    "真諄臻文欣魂痕|軫準吻隱混很震稕問焮慁恨",
    "元寒桓刪山先仙|阮旱緩潸產銑獮願翰換諫襇霰線",
    "蕭宵肴豪|篠小巧晧嘯笑效号",
    "歌戈|哿果箇過",
    "麻|馬禡",
    "庚耕清青蒸登|梗耿靜迥拯等映諍勁徑證嶝",
    "尤侯幽|有厚黝宥候幼",
    "侵|寑沁",
    "覃談鹽添嚴咸銜凡|感敢琰忝儼豏檻范勘闞豔㮇釅陷鑑梵",
    "|屋沃燭",
    "|覺藥鐸",
    "|質術櫛陌麥昔錫職德緝",
    "|物迄月沒曷末黠鎋屑薛葉怗",
    "|合盍業洽狎乏",
)
# what Cilin moves by the character: 佳 half to 麻 (part 10), 泰 with rounded lips to part 3
_CILIN_MOVED = dict.fromkeys("佳崖涯娃蛙媧緺蝸洼騧", "麻") | dict.fromkeys("卦掛挂畫罣絓話", "禡")
_CILIN_MOVED |= dict.fromkeys("會繪檜膾薈澮儈外最貝沛霈旆狽兌蛻酹濊翽", "隊")

_XINYUN = (
    "一麻:a ia ua|二波:o e uo|三皆:ie ve|四开:ai uai|五微:ei uei|六豪:ao iao|七尤:ou iou|八寒:an ian uan van|"
    "九文:en in uen vn|十唐:ang iang uang|十一庚:eng ing ueng ong iong|十二齐:i er v|十三支:-i|十四姑:u"
)
_TONGYUN = (
    "一啊:a ia ua|二喔:o uo|三鹅:e ie ve|四衣:i -i|五乌:u|六迂:v|七哀:ai uai|八欸:ei uei|九熬:ao iao|十欧:ou iou|"
    "十一安:an ian uan van|十二恩:en in uen vn|十三昂:ang iang uang|十四英:eng ing ueng|十五雍:ong iong|十六儿:er"
)

# groups near enough for the first line (首句邻韵) and, leniently, for a whole poem; Song ci mix the parts listed here
_NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "平水韵": (
        "一東 二冬 三江",
        "四支 五微 八齊",
        "六魚 七虞",
        "八齊 九佳 十灰",
        "十一真 十二文 十三元",
        "十三元 十四寒 十五刪 一先",
        "二蕭 三肴 四豪",
        "五歌 六麻",
        "九佳 六麻",
        "三江 七陽",
        "八庚 九青 十蒸",
        "十三覃 十四鹽 十五咸",
        "十一真 十二侵",
    ),
    "词林正韵": (
        "第三部 第五部",
        "第五部 第十部",
        "第六部 第十一部 第十三部",
        "第七部 第十四部",
        "第十七部 第十八部 第十九部",
    ),
}


@dataclass(frozen=True, eq=False)
class Book:
    """One rhyme book: groups by number, and which group a rhyme (Guangyun's) or final (Mandarin's) belongs to."""

    name: str
    english: str
    modern: bool
    groups: tuple[str, ...]
    """Names, by number."""
    members: Mapping[str, int]
    """Guangyun rhyme, or Mandarin final, -> number of the group."""
    moved: Mapping[str, str]
    """Characters that this book puts elsewhere -> the rhyme they go with."""

    def group(self, heading: str, character: str = "") -> int:
        """Return the number of the group of a rhyme; *character* matters where the book splits a rhyme."""
        return self.members[self.moved.get(character, heading) if self.moved else heading]

    @cached_property
    def neighbours(self) -> tuple[int, ...]:
        """Return for each group the set of groups that are near enough to be heard as a rhyme, as bits."""
        near = [1 << number for number in range(len(self.groups))]
        for names in _NEIGHBOURS.get(self.name, ()):
            numbers = [self.groups.index(name) for name in names.split()]
            for number in numbers:
                near[number] |= sum(1 << other for other in numbers)
        return tuple(near)


def _pingshui() -> Book:
    groups: list[str] = []
    members: dict[str, int] = {}
    for rhymes in _PINGSHUI.values():
        for rhyme in rhymes.split():
            name, _, headings = rhyme.partition(":")
            members |= dict.fromkeys(headings, len(groups))
            groups.append(name)
    return Book("平水韵", "Pingshui", False, tuple(groups), members, {})


def _cilin() -> Book:
    numerals = "一二三四五六七八九十"
    names = [*numerals, *(f"十{numeral}" for numeral in numerals[:9])]
    members = {heading: part for part, headings in enumerate(_CILIN) for heading in headings if heading != "|"}
    return Book("词林正韵", "Cilin zhengyun", False, tuple(f"第{name}部" for name in names), members, _CILIN_MOVED)


def _modern(name: str, english: str, text: str) -> Book:
    parts = [part.partition(":") for part in text.split("|")]
    members = {final: number for number, (_, _, finals) in enumerate(parts) for final in finals.split()}
    return Book(name, english, True, tuple(part[0] for part in parts), members, {})


BOOKS = {
    book.name: book
    for book in (
        _pingshui(),
        _cilin(),
        _modern("中华新韵", "New Rhymes", _XINYUN),
        _modern("中华通韵", "Common Rhymes", _TONGYUN),
    )
}
PINGSHUI, CILIN = BOOKS["平水韵"], BOOKS["词林正韵"]

# tone of each Guangyun rhyme; the Pingshui names say which volume it stands in
TONES = {
    heading: "平" if volume.endswith("平") else volume
    for volume, rhymes in _PINGSHUI.items()
    for rhyme in rhymes.split()
    for heading in rhyme.partition(":")[2]
}


def find_book(name: str) -> Book:
    """Return the book called *name*, in Chinese or English; :class:`ProsodyError` if there is none."""
    for book in BOOKS.values():
        if name.lower() in (book.name, book.english.lower(), book.name.removeprefix("中华")):
            return book
    raise ProsodyError(f"rhyme book {name!r} is not known; there are {', '.join(BOOKS)}")
