"""Examples kept between runs, mapped into memory; found again only where all that decides them is the same.

``<cache folder>/examples/<data>/<examples>/`` holds ``train.arrow``, ``validation.arrow`` (where there is any),
``about.json`` (counts, files, notices, the held-out conversations) and ``checksums.json``.  The two names are hashes:
of the data and the code, then of the template, the tokenizer, the stage and the lengths besides.  An entry is whole or
not there; whoever deletes any part of the folder loses nothing but the time to make it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import TypeAdapter

import tunesmith
from tunesmith.core.errors import UserError
from tunesmith.core.settings import cache_folder
from tunesmith.data.conversation import Conversation
from tunesmith.data.source import Source, settle_source
from tunesmith.engine.example_table import ExampleTable
from tunesmith.run.prepared import Prepared, Split

if TYPE_CHECKING:
    from tunesmith.core.registry import Spec
    from tunesmith.recipe.schema import Recipe
    from tunesmith.templates.chat import ChatTemplate

# all code that has a part in what examples become, as folders and files of the package
CODE = (
    "core",
    "data",
    "templates",
    "stages",
    "engine/example.py",
    "engine/example_table.py",
    "models/heads.py",
    "run/example_cache.py",
    "run/make_examples.py",
    "run/prepare.py",
    "run/prepared.py",
)
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "numpy", "pyarrow")
_ABOUT, _CHECKSUMS, _PARTIAL = "about.json", "checksums.json", ".partial-"
_FOREIGN = "the stage keeps values beside its examples that JSON has not"
_UNUSED = 30 * 24 * 3600  # seconds after which an entry that nobody used is removed

# what a template may say of the clock so that what it renders is the same all day
_DAY = re.compile(
    r"strftime_now is (not )?defined|strftime_now\(\s*(['\"])((?!\2|%).|%-?[aAbBCdDeFgGhjmuUVwWxyY])*\2\s*\)"
)


class _CannotKeepError(Exception):
    """Examples that could not be told from others, or not be written; says why."""


@dataclass(frozen=True)
class _About:
    """All of an entry that is not a table."""

    train: dict[str, int]
    validation: dict[str, int] | None
    held_out: list[Conversation]
    files: list[dict[str, Any]]
    notices: list[str]


class ExampleCache:
    """The examples that were made of one recipe's data, as its files are now."""

    def __init__(self, recipe: Recipe) -> None:
        """Hash the data files of *recipe*; nothing of them is read as data."""
        self.recipe = recipe
        self.hashes: dict[str, str] = {}
        """SHA-256 of each data file."""
        self.has_examples = False
        """Whether examples were made of these very files before: each row of them can be read."""
        self._folder: Path | None = None
        self._why_not = ""
        try:
            self._folder = cache_folder() / "examples" / _digest(self._describe_data())
            self.has_examples = self._folder.is_dir()
        except _CannotKeepError as error:
            self._why_not = str(error)
        except RuntimeError:
            self._why_not = "there is no home folder to keep them in; set TUNESMITH_CACHE"
        except (UserError, OSError):
            self._why_not = "the data cannot be read"  # whoever reads it says what is wrong

    def load(self, template: ChatTemplate) -> Prepared | None:
        """Return the examples as they were made with *template* and the recipe's settings, if they are kept."""
        if not self.has_examples:
            return None
        try:
            entry = self._entry(template)
        except _CannotKeepError:
            return None
        return _read_entry(entry, template)

    def keep(self, prepared: Prepared) -> Prepared:
        """Keep *prepared*, and return it as every later run will see it; where it cannot be kept, say why in it."""
        try:
            entry = self._entry(prepared.template)
            for file in prepared.files:
                if self.hashes.get(file["path"]) != file["sha256"]:
                    raise _CannotKeepError(f"{file['path']} changed while it was read")
            _remove_unused(entry.parents[1])
            _write_entry(entry, prepared)
        except _CannotKeepError as error:
            return replace(prepared, remade_because=str(error))
        except OSError as error:
            reason = f"{cache_folder()} cannot be written: {error.strerror or error}"
            return replace(prepared, remade_because=reason)
        return _read_entry(entry, prepared.template) or prepared

    def _entry(self, template: ChatTemplate) -> Path:
        if self._folder is None:
            raise _CannotKeepError(self._why_not)
        data, stage = self.recipe.data, self.recipe.stage
        _check_own(stage)
        settings = {"stage": stage.model_dump(mode="json"), "max_tokens": data.max_tokens, "too_long": data.too_long}
        return self._folder / _digest({**settings, **_describe_template(template)})

    def _describe_data(self) -> dict[str, Any]:
        data = self.recipe.data
        return {
            "code": _hash_code(),
            "libraries": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
            "train": [self._describe_source(source) for source in data.train],
            "validation": [self._describe_source(source) for source in data.validation],
            "bad_rows": data.bad_rows,
            "held_out": [data.validation_share, self.recipe.seed] if data.validation_share else None,
        }

    def _describe_source(self, source: Source) -> dict[str, Any]:
        settled = settle_source(source, "", use_hub=False)
        if settled is None:
            raise _CannotKeepError(f"{source.path} is on the Hub, which may change it")
        _check_own(settled.format)
        hashes = {part.name: part.hash() for part in settled.parts}
        self.hashes |= hashes
        settings = settled.source.model_dump(mode="json", exclude={"format"})
        return {**settings, "format": settled.format.model_dump(mode="json"), "files": list(hashes.items())}


def _digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode()).hexdigest()[:40]


def _hash_code() -> str:
    package = Path(tunesmith.__file__).parent
    digest = hashlib.sha256()
    for name in CODE:
        for file in sorted((package / name).rglob("*.py")) if (package / name).is_dir() else [package / name]:
            digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _check_own(plugin: Spec) -> None:
    if not type(plugin).__module__.startswith("tunesmith."):
        raise _CannotKeepError(f"{plugin.type_name()} is of another distribution, whose changes are not seen here")


def _describe_template(template: ChatTemplate) -> dict[str, Any]:
    tokenizer: Any = template.tokenizer
    kind = type(tokenizer)
    if not tokenizer.is_fast or not kind.__module__.startswith("transformers."):
        raise _CannotKeepError("the tokenizer is a Python program, whose changes are not seen here")
    chat = tokenizer.chat_template
    texts = [chat] if isinstance(chat, str) else list((chat or {}).values())
    if any("strftime_now" in _DAY.sub("", text) for text in texts):
        raise _CannotKeepError("the template writes the time of day")
    return {
        "template": chat,
        "today": date.today().isoformat() if any("strftime_now" in text for text in texts) else None,
        "stop_ids": template.stop_ids,
        "lost": template.lost,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "special_tokens": tokenizer.special_tokens_map,
        "split_special_tokens": tokenizer.split_special_tokens,
    }


# --- entries


def _read_entry(entry: Path, template: ChatTemplate) -> Prepared | None:
    """Return what is kept in *entry*; None where there is nothing, or something damaged, which is then removed."""
    try:
        checksums = TypeAdapter(dict[str, int]).validate_json((entry / _CHECKSUMS).read_bytes())
        files = {name: _map_whole(entry / name, checksum) for name, checksum in checksums.items()}
        about = TypeAdapter(_About).validate_json(files[_ABOUT].to_pybytes())
        train = Split(_read_table(files["train.arrow"]), about.train)
        held = about.validation
        validation = None if held is None else Split(_read_table(files["validation.arrow"]), held)
    except (OSError, ValueError, KeyError):
        shutil.rmtree(entry, ignore_errors=True)
        return None
    with suppress(OSError):  # somebody else's cache may be read-only
        os.utime(entry)
    return Prepared(
        template=template,
        train=train,
        validation=validation,
        held_out=about.held_out,
        files=about.files,
        notices=about.notices,
    )


def _write_entry(entry: Path, prepared: Prepared) -> None:
    train, validation = prepared.train, prepared.validation
    about = _as_json(
        _About(
            train=train.counts,
            validation=None if validation is None else validation.counts,
            held_out=list(prepared.held_out),
            files=prepared.files,
            notices=prepared.notices,
        )
    )
    partial = entry.with_name(f"{_PARTIAL}{uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        _write_table(partial / "train.arrow", train.examples)
        if validation is not None:
            _write_table(partial / "validation.arrow", validation.examples)
        (partial / _ABOUT).write_bytes(about)
        checksums = {file.name: zlib.crc32(_map(file)) for file in partial.iterdir()}
        (partial / _CHECKSUMS).write_text(json.dumps(checksums), encoding="utf-8")
        for file in partial.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        partial.rename(entry)
    except OSError:
        if not entry.is_dir():  # else another process was first with the same
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _as_json(about: _About) -> bytes:
    adapter = TypeAdapter(_About)
    try:
        text = adapter.dump_json(about)
        same = adapter.validate_json(text) == about
    except ValueError:
        same = False
    if not same:  # such as a tool's description with a date in it, from a Parquet file
        raise _CannotKeepError("the held-out conversations hold values that JSON has not")
    return text


def _remove_unused(folder: Path) -> None:
    """Remove the entries in *folder* that nobody used for a month, and what processes left that were killed."""
    for entry in folder.glob("*/*"):
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > _UNUSED:
                shutil.rmtree(entry)
                entry.parent.rmdir()  # if that was the last one in it


# --- tables as Arrow files: one row an example


def _write_table(path: Path, table: ExampleTable) -> None:
    import pyarrow

    def nested(values: Any) -> Any:
        sequences = pyarrow.LargeListArray.from_arrays(table.sequence_start, values)
        return pyarrow.LargeListArray.from_arrays(table.example_start, sequences)

    columns = {
        "tokens": nested(table.tokens),
        "weight": nested(table.weight),
        "file": pyarrow.DictionaryArray.from_arrays(table.file, pyarrow.array(table.files, pyarrow.string())),
        "line": table.line,
        "values": pyarrow.array(_as_texts(table.values), pyarrow.string())
        if table.values
        else pyarrow.nulls(len(table), pyarrow.string()),
    }
    batch = pyarrow.record_batch(columns)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _read_table(buffer: Any) -> ExampleTable:
    import pyarrow

    batch = pyarrow.ipc.open_file(buffer).get_batch(0)
    tokens, weight, file, line, values = batch.columns
    return ExampleTable(
        tokens.values.values.to_numpy(),
        weight.values.values.to_numpy(),
        tokens.values.offsets.to_numpy(),
        tokens.offsets.to_numpy(),
        file.indices.to_numpy(),
        line.to_numpy(),
        tuple(file.dictionary.to_pylist()),
        tuple(tuple(json.loads(text)) for text in values.to_pylist()) if len(values) > values.null_count else (),
    )


def _as_texts(values: tuple[tuple[Any, ...], ...]) -> list[str]:
    try:
        texts = [json.dumps(each) for each in values]
    except TypeError as error:
        raise _CannotKeepError(_FOREIGN) from error
    if tuple(tuple(json.loads(text)) for text in texts) != values:
        raise _CannotKeepError(_FOREIGN)
    return texts


def _map(path: Path) -> Any:
    """Return the file as mapped memory, a ``pyarrow.Buffer``."""
    import pyarrow

    return pyarrow.memory_map(str(path)).read_buffer()


def _map_whole(path: Path, checksum: int) -> Any:
    """Return the file as mapped memory; raise ``ValueError`` where it is not what was written."""
    buffer = _map(path)
    if zlib.crc32(buffer) != checksum:
        raise ValueError(f"{path} is damaged")
    return buffer
