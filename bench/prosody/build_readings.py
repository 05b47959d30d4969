"""Make the package data of tunesmith.prosody that comes from books: readings.txt, variants.txt, mandarin.txt.

Run in a virtual environment of its own, with the path of Debian's unicode-data unpacked:

    pip install tshet-uinh==0.1.0 pypinyin==0.55.0 opencc-python-reimplemented==0.1.7
    apt-get download unicode-data && dpkg -x unicode-data_*.deb unicode-data
    python bench/prosody/build_readings.py unicode-data/usr/share/unicode

The sources: Guangyun (1008, public domain) as digitised by tshet-uinh (MIT); OpenCC's character tables (Apache-2.0);
Unihan 15.0 variants (Unicode licence); pypinyin's dictionary (MIT).
"""

import bz2
import collections
import re
import sys
from pathlib import Path

DATA = Path(__file__).parents[2] / "src/tunesmith/prosody/data"
# characters of verse that Guangyun lacks or writes otherwise, each with one that sounds the same (Jiyun, Kangxi)
SUPPLEMENT = dict(
    zip(
        "魂瀟聯韓髭崑烹逈秖煉嫦熳蝴鶒姮淘鷥鶺潑鷀撐柿縲廐敧槁勾濾搘暌鶗駡樗享蒂裊恓毶灧嶤蘗焙婷壟爺嵓劚簑隟薝餳澘糵"
        "撒罕葡歘頳挍噴抛喝摔她妳您哪啊呀嗎吧啦呢很搞扔趕找拼攏撲撈撇腳謊繃躲爸",
        "渾蕭連寒貲昆棚迥支練常漫胡敕恒陶絲脊鏺慈瞠市纍救欹縞鉤慮支睽題罵攄響帝嫋西毿豔堯檗佩亭隴耶巖斸蓑隙詹情潸孽"
        "薩旱蒲欻赬校歕拋曷率他你你那阿牙馬巴拉尼狠槁仍桿爪姘隴撲勞瞥腳荒崩嚲霸",
        strict=True,
    )
)
HAN = re.compile(r"[〇㐀-䶿一-鿿\U00020000-\U000323af]")


def guangyun() -> dict[str, list[str]]:
    """Return character -> its rhymes (of 206), in the order of the book."""
    from tshet_uinh.資料 import m字頭檢索

    readings: dict[str, list[str]] = {}
    for character, entries in m字頭檢索.items():
        if not HAN.fullmatch(character):
            continue
        rhymes = list(dict.fromkeys(entry.來源.韻目 for entry in entries))
        if rhymes:
            readings[character] = rhymes
    return readings


def opencc(name: str) -> dict[str, list[str]]:
    """Return a table of OpenCC: character -> characters it stands for."""
    import opencc as package

    path = Path(package.__file__).parent / "dictionary" / f"{name}.txt"
    rows = (line.split("\t") for line in path.read_text("utf-8").splitlines() if "\t" in line)
    return {key: value.split() for key, value in rows if len(key) == 1}


def unihan(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return kind of variant -> character -> variants, nearest first."""
    kinds: dict[str, dict[str, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for line in bz2.decompress((folder / "Unihan_Variants.txt.bz2").read_bytes()).decode().splitlines():
        if line.startswith("U+"):
            code, kind, values = line.split("\t")
            for value in values.split():
                kinds[kind][chr(int(code[2:], 16))].append(chr(int(value.split("<")[0][2:], 16)))
    return kinds


def glyph_variants(readings: dict[str, list[str]], kinds: dict[str, dict[str, list[str]]]) -> dict[str, set[str]]:
    """Return character -> other ways to write it."""
    glyphs: dict[str, set[str]] = collections.defaultdict(set)
    for name in ("TWVariants", "HKVariants"):
        for character, values in opencc(name).items():
            for value in values:
                glyphs[value].add(character)
                glyphs[character].add(value)
    for character, values in opencc("JPVariants").items():
        for value in set(values) - set(readings):
            glyphs[value].add(character)
    for character, values in kinds["kZVariant"].items():
        glyphs[character] |= set(values)
    for character, alike in SUPPLEMENT.items():
        if character not in readings:
            glyphs[character] = {alike}
    return glyphs


def fold(readings: dict[str, list[str]], folder: Path) -> dict[str, tuple[str, str]]:
    """Return character -> (kind, sources): ``=`` another way to write it, ``s`` what a simplified one stands for."""
    kinds = unihan(folder)
    glyphs = glyph_variants(readings, kinds)
    simplified = opencc("STCharacters")
    for character, values in kinds["kTraditionalVariant"].items():
        simplified.setdefault(character, values)

    def near(character: str) -> list[str]:
        alike = [*glyphs[character], *kinds["kSemanticVariant"][character], *kinds["kTraditionalVariant"][character]]
        return alike or kinds["kSpecializedSemanticVariant"][character] or kinds["kSimplifiedVariant"][character]

    folded = {}
    for character in sorted({*glyphs, *simplified, *(c for kind in kinds.values() for c in kind)}):
        traditional = simplified.get(character, ())
        stands_for = set(traditional) & set(readings) - {character}
        same = glyphs[character] | {SUPPLEMENT[other] for other in traditional if other in SUPPLEMENT}
        same = same & set(readings) - {character}
        if character not in readings and not same and not stands_for:
            same = set(near(character)) & set(readings)
            # one step further
            same = same or {far for other in near(character) for far in near(other)} & set(readings)
        if stands_for - same:
            folded[character] = ("s", "".join(sorted(stands_for | same)))
        elif same:
            folded[character] = ("=", "".join(sorted(same)))
    return folded


def mandarin() -> dict[str, list[str]]:
    """Return final with tone, such as ``iang2`` or ``-i4`` -> characters; first readings and the usual others."""
    from pypinyin import Style, pinyin, pinyin_dict
    from pypinyin.contrib.tone_convert import to_finals_tone3, to_initials

    common = {character for code in range(0x4E00, 0xA000) if (character := chr(code))}
    by_final: dict[str, list[str]] = collections.defaultdict(list)
    for code in sorted(pinyin_dict.pinyin_dict):
        character = chr(code)
        if code > 0x9FFF or not HAN.fullmatch(character):
            continue
        syllables = pinyin_dict.pinyin_dict[code].split(",")
        wanted = syllables if character in common and is_everyday(character) else syllables[:1]
        seen = []
        for syllable in wanted:
            final = to_finals_tone3(syllable, strict=True, v_to_u=False).replace("ü", "v").replace("ê", "e")
            if not re.fullmatch(r"[a-zv]+[1-4]", final):
                continue
            if final[:-1] == "i" and to_initials(syllable, strict=True) in {"zh", "ch", "sh", "r", "z", "c", "s"}:
                final = "-i" + final[-1]
            if final not in seen:
                seen.append(final)
                by_final[final].append(character)
    assert pinyin("中", style=Style.TONE3)
    return by_final


def is_everyday(character: str) -> bool:
    """Say whether the character belongs to GB 2312, whose other readings are alive."""
    try:
        character.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def write(name: str, head: list[str], lines: list[str]) -> None:
    """Write one data file with its provenance on top."""
    text = "".join(f"# {line}\n" for line in head) + "".join(f"{line}\n" for line in lines)
    (DATA / name).write_text(text, "utf-8")
    print(name, len(lines), "lines", len(text.encode()), "bytes")


def main() -> None:
    """Write the three files."""
    folder = Path(sys.argv[1])
    readings = guangyun()
    by_rhyme: dict[str, list[str]] = collections.defaultdict(list)
    for character, rhymes in readings.items():
        for rhyme in rhymes:
            by_rhyme[rhyme].append(character)
    made = "made by bench/prosody/build_readings.py; version 1"
    write(
        "readings.txt",
        [
            f"Guangyun: rhyme, then the characters that have it; {made}",
            "source: Guangyun (public domain) as digitised in tshet-uinh 0.1.0 (MIT, nk2028 and SkyEye_FAST)",
        ],
        [f"{rhyme} {''.join(characters)}" for rhyme, characters in by_rhyme.items()],
    )
    folded = fold(readings, folder)
    write(
        "variants.txt",
        [
            f"character, kind, the Guangyun characters whose readings it has; {made}",
            "= is another way to write them; s is a simplified form of them",
            "sources: OpenCC character tables (Apache-2.0), Unihan 15.0 variants (Unicode licence)",
        ],
        [f"{character}{kind}{sources}" for character, (kind, sources) in folded.items()],
    )
    finals = mandarin()
    write(
        "mandarin.txt",
        [
            f"Mandarin: final with tone, then the characters that have it; {made}",
            "source: pypinyin 0.55.0's dictionary (MIT); other readings than the first for GB 2312 characters only",
        ],
        [f"{final} {''.join(finals[final])}" for final in sorted(finals)],
    )


if __name__ == "__main__":
    main()
