"""Traditional and simplified characters (繁簡), without losing what was written."""

from __future__ import annotations

from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Literal

from tunesmith.core.registry import is_missing
from tunesmith.data.cleaning._base import AbstractEach, Log
from tunesmith.data.poems import Poem
from tunesmith.prosody.readings import readings_for


class Script(AbstractEach):
    """Write text, title, author and tune in one script; what was written stands in ``original``.

    To simplified characters two words may fall together (后 後, 余 餘).  To traditional ones each becomes what
    it mostly stands for in Tang verse; where that is in doubt (发 發 髮), OpenCC decides by the words around
    (``pip install 'tunesmith[verse]'``), and without it such characters are listed in ``doubtful``.
    """

    to: Literal["simplified", "traditional"] = "simplified"
    """The script to write in."""

    def clean_one(self, poem: Poem, log: Log) -> Poem:
        if readings_for(poem.text).simplified == (self.to == "simplified") and not self._mixed(poem.text):
            return poem
        fields = {name: getattr(poem, name) for name in ("text", "title", "author", "tune")}
        written = {name: self._convert(value) for name, value in fields.items()}
        if written == fields:
            return poem
        log.note(f"written in {self.to} characters", poem, poem.text[:24].replace("\n", ""), written["text"][:24])
        changed = poem.changed(**written)
        doubtful = self._left_in_doubt(poem.text)
        if doubtful:
            log.note("poems with doubtful characters", poem, doubtful, self._convert(doubtful))
            changed = changed.with_extra(doubtful=doubtful)
        return changed

    def _mixed(self, text: str) -> bool:
        foreign = to_simplified() if self.to == "simplified" else to_traditional()
        return any(ord(character) in foreign for character in text)

    def _convert(self, text: str) -> str:
        if self.to == "simplified":
            return text.translate(to_simplified()) if self._opencc is None else str(self._opencc.convert(text))
        by_table = text.translate(to_traditional())
        by_words = by_table if self._opencc is None else str(self._opencc.convert(text))
        if len(by_words) != len(text):
            return by_table
        pairs = zip(text, by_table, by_words, strict=True)
        return "".join(word if written in _doubtful() else usual for written, usual, word in pairs)

    def _left_in_doubt(self, text: str) -> str:
        """Return the characters of *text* that nothing settled; none where OpenCC looked at the words around."""
        if self.to == "simplified" or self._opencc is not None:
            return ""
        return "".join(dict.fromkeys(character for character in text if character in _doubtful()))

    @cached_property
    def _opencc(self) -> Any:
        return None if is_missing("opencc") else _opencc("t2s" if self.to == "simplified" else "s2t")


@cache
def _opencc(name: str) -> Any:
    import opencc

    return opencc.OpenCC(name)


@cache
def _sources() -> dict[str, str]:
    """Return simplified character -> the traditional ones it stands for, the commonest first."""
    text = (files("tunesmith.data.cleaning") / "scripts.txt").read_text("utf-8")
    return {line[0]: line[1:] for line in text.splitlines() if not line.startswith("#")}


@cache
def _doubtful() -> frozenset[str]:
    return frozenset(simple for simple, sources in _sources().items() if sources.endswith("?"))


@cache
def to_simplified() -> dict[int, str]:
    """Return code point -> simplified character, for every traditional one that is not simplified too."""
    found = _sources()
    return {
        ord(each): simple for simple, sources in found.items() for each in sources if each not in found and each != "?"
    }


@cache
def to_traditional() -> dict[int, str]:
    """Return code point -> the commonest traditional character, where that is another one."""
    return {ord(simple): sources[0] for simple, sources in _sources().items() if simple != sources[0]}
