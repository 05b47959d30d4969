"""What counts as a character when texts are compared."""

import re
import unicodedata

HAN = "[〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
"""Regular expression for one Chinese character, extensions and compatibility forms included."""

_CHARACTER = f"{HAN}|[\u3040-\u30ff]"
UNIT = re.compile(rf"{_CHARACTER}|(?:(?!{_CHARACTER})[^\W_])+")
"""A word of letters and digits, or one Chinese character or kana: what n-grams are made of."""

TILDES = "~～"
"""Punctuation in Chinese prose; symbols to Unicode."""


def normal_form(text: str) -> str:
    """Return *text* composed (Unicode NFC) and without white space at its ends."""
    return unicodedata.normalize("NFC", text).strip()


def without_punctuation(text: str) -> str:
    """Return the composed *text* without punctuation, white space, control and format characters."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(c for c in composed if unicodedata.category(c)[0] not in "PZC" and c not in TILDES)


def count_characters(text: str) -> int:
    """Return how many characters a reader counts: no punctuation, no white space, no combining marks."""
    return sum(not unicodedata.category(c).startswith("M") for c in without_punctuation(text))
