"""Lines and characters of a verse, however it is written."""

import re
import unicodedata
from dataclasses import dataclass

# ends a line or a clause; everything else that is neither a character nor a mark is dropped
_STOPS = "。！？；!?;.．｡\n"
_PAUSES = "，、,：:　｜|/／ \t·"
# printed for a character that is lost (□) or that the platform could not show
LOST = "□■◇○●囗*＊\ufffd"
_HAN = "〇々㐀-䶿一-鿿豈-龎\U00020000-\U000323af"
_UNIT = re.compile(rf"[{_HAN}{re.escape(LOST)}0-9A-Za-z\u00c0-\u024f\u0370-\u052f\u3040-\u30ff\uac00-\ud7af]")
_SPLIT = re.compile(f"[{re.escape(_STOPS)}]")
_PAUSE = re.compile(f"[{re.escape(_PAUSES)}]")
_IS_HAN = re.compile(f"[{_HAN}]")


@dataclass(frozen=True, slots=True)
class Text:
    """A verse cut up: its clauses, and where a sentence ends."""

    clauses: tuple[str, ...]
    """Characters between two marks, one entry each; never empty ones."""
    sentences: tuple[tuple[str, ...], ...]
    """The same clauses, by sentence."""


def split_text(text: str) -> Text:
    """Cut *text* at its marks and line ends; compatibility ideographs become the characters they stand for."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.replace("\r", "\n"))
    sentences = []
    for sentence in _SPLIT.split(text):
        clauses = tuple(clause for part in _PAUSE.split(sentence) if (clause := "".join(_UNIT.findall(part))))
        if clauses:
            sentences.append(clauses)
    return Text(tuple(clause for sentence in sentences for clause in sentence), tuple(sentences))


def is_han(character: str) -> bool:
    """Say whether *character* is a Chinese character of any block."""
    return _IS_HAN.match(character) is not None
