"""A poem as collections keep it: text, title, author; read from their files, written back with all they had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from tunesmith.data.conversation import BadRow, Origin
from tunesmith.data.describe import describe, names
from tunesmith.data.sources.files import find_files, read_file
from tunesmith.prosody.text import LOST, split_text
from tunesmith.prosody.verses import FIELDS, read_verses

# field of ours -> what collections call it
_NAMES = {
    "title": ("title", "name", "标题"),
    "author": ("author", "poet", "作者"),
    "dynasty": ("dynasty", "朝代"),
    "tune": ("tune", "rhythmic", "cipai", "词牌"),
}
# fields that cleaning writes and reads back
_OURS = ("form", "rhyme", "metre")
_SENTENCE = re.compile(r"[^。！？；\n]*[。！？；\n]?[」』”’）)]*")


@dataclass(frozen=True)
class Poem:
    """One poem; what a step changes is a new poem that remembers what stood there at first."""

    text: str
    """Lines, parted by line ends."""
    title: str = ""
    author: str = ""
    dynasty: str = ""
    tune: str = ""
    """Tune of a ci (词牌)."""
    form: str = ""
    """Form, as a check found it."""
    rhyme: str = ""
    """Group of the rhyme book."""
    metre: str = ""
    """合律, 从宽 or 不合; empty where it was not checked."""
    notes: tuple[str, ...] = ()
    """What stood beside the verse: notes of editors, other readings, sources."""
    where: str = ""
    """File and line."""
    original: Mapping[str, str] = field(default_factory=dict)
    """Field -> what it was before the first change."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the record that are none of ours, as they were."""

    def changed(self, **fields: str) -> Poem:
        """Return the poem with other *fields*; what they were is kept, except for labels that were not there."""
        was = {name: getattr(self, name) for name, value in fields.items() if value != getattr(self, name)}
        first = {name: text for name, text in was.items() if text and name not in self.original}
        return replace(replace(self, **cast("dict[str, Any]", fields)), original={**self.original, **first})

    def with_notes(self, notes: list[str]) -> Poem:
        """Return the poem with more *notes*."""
        return replace(self, notes=(*self.notes, *notes))

    def with_extra(self, **fields: Any) -> Poem:
        """Return the poem with more fields beside ours."""
        return replace(self, extra={**self.extra, **fields})

    @property
    def characters(self) -> str:
        """The characters of the text, without marks."""
        return "".join(split_text(self.text).clauses)

    @property
    def lost(self) -> int:
        """How many characters are lost."""
        return sum(character in LOST for character in self.characters)

    def as_record(self) -> dict[str, Any]:
        """Return the poem as a JSON-ready record; empty fields are left out."""
        labels = {name: getattr(self, name) for name in (*_NAMES, *_OURS)}
        found: dict[str, Any] = {name: value for name, value in labels.items() if value}
        found["lines"] = self.text.split("\n")
        found |= {"notes": list(self.notes)} if self.notes else {}
        found |= {name: value for name, value in self.extra.items() if name not in found}
        return found | ({"original": dict(self.original)} if self.original else {})


def read_poems(path: Path, field: str | None = None) -> Iterator[Poem | BadRow]:
    """Yield the poems of a file or folder; a record without verse is a bad row.

    Of a ``.txt`` file empty lines part the poems.  *field* names where records keep the verse.  Raises
    :class:`DataError` where there is no such file, or one is broken.
    """
    files, _ = find_files(path)
    for file in files:
        if file.suffix.lower() == ".txt":
            for verse in read_verses(file):
                yield Poem(verse.text, where=verse.where)
            continue
        for row in read_file(file):
            yield row if isinstance(row, BadRow) else poem_of(row.values, row.origin, field)


def poem_of(values: Mapping[str, Any], origin: Origin, field: str | None = None) -> Poem | BadRow:
    """Return the poem in a record."""
    name = field or next((each for each in FIELDS if each in values), None)
    text = _text(values.get(name)) if name else None
    if text is None and name is not None and name in values:
        return BadRow(origin, f"{name} holds {describe(values[name])}; a verse is a text or a list of lines")
    if text is None:
        tried = f"field {field!r}" if field else f"any of {', '.join(FIELDS)}"
        return BadRow(origin, f"no verse in {tried}; it has {names(values) or 'no fields'}")
    used = {name, "notes", "original"}
    ours: dict[str, str] = {}
    for key, spellings in {**_NAMES, **{each: (each,) for each in _OURS}}.items():
        found = next((each for each in spellings if isinstance(values.get(each), str)), None)
        if found is not None:
            ours[key] = values[found]
            used.add(found)
    notes = [note for note in values.get("notes") or () if isinstance(note, str)]
    original = values.get("original")
    extra = {key: value for key, value in values.items() if key not in used}
    return Poem(
        text,
        notes=tuple(notes),
        where=str(origin),
        original=original if isinstance(original, dict) else {},
        extra=extra,
        **ours,
    )


def _text(value: Any) -> str | None:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    return value.replace("\r\n", "\n").strip() if isinstance(value, str) else None


def sentences(text: str) -> list[str]:
    """Return *text* cut after each full stop and line end, without white space around; never empty ones."""
    return [found for part in _SENTENCE.findall(text) if (found := part.strip())]
