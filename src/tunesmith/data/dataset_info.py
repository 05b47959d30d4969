"""LLaMA-Factory's ``dataset_info.json``: what an entry means as the settings of a source."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.core.errors import DataError
from tunesmith.core.registry import suggest
from tunesmith.data.describe import describe, names

_PLACES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "system_tag": "system",
}


class _Columns(BaseModel):
    """The file's columns; LLaMA-Factory reads no column that an entry's ``columns`` leave out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    messages: str | None = None
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None


_DEFAULT_COLUMNS = _Columns(prompt="instruction", query="input", response="output", messages="conversations")


class _Tags(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role_tag: str | None = None
    content_tag: str | None = None
    user_tag: str | None = None
    assistant_tag: str | None = None
    observation_tag: str | None = None
    function_tag: str | None = None
    system_tag: str | None = None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    file_name: str | None = None
    hf_hub_url: str | None = None
    ms_hub_url: str | None = None
    om_hub_url: str | None = None
    script_url: str | None = None
    cloud_file_name: str | None = None
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: Annotated[int, Field(ge=1)] | None = None
    columns: _Columns = _DEFAULT_COLUMNS
    tags: _Tags = _Tags()


def list_datasets(file: Path) -> list[str]:
    """Return the names in *file* if it is LLaMA-Factory's; other tools write files of that name too."""
    try:
        entries = _read_entries(file)
    except DataError:
        return []
    ours = all(isinstance(entry, dict) and any(place in entry for place in _PLACES) for entry in entries.values())
    return list(entries) if ours else []


def read_dataset(file: Path, name: str) -> dict[str, Any]:
    """Return the settings of the source that the entry *name* of *file* describes.

    Raises :class:`DataError` for an entry that is not there, wrong, or of a kind that this version does not read.
    """
    entries = _read_entries(file)
    if name not in entries:
        raise DataError(f"{file}: no data set {name!r}{suggest(name, entries)}; have {names(entries) or 'none'}")
    where = f"{file}: data set {name!r}"
    try:
        entry = _Entry.model_validate(entries[name])
    except ValidationError as error:
        raise DataError("; ".join(f"{where}: {_explain(item)}" for item in error.errors())) from error
    if problems := list(_check(entry)):
        raise DataError("; ".join(f"{where}: {problem}" for problem in problems))
    settings: dict[str, Any] = {**_locate(entry, file), **_FORMATS[entry.formatting](entry)}
    if entry.num_samples is not None:
        settings["take"] = entry.num_samples
    return settings


def _read_entries(file: Path) -> dict[str, Any]:
    try:
        entries = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not JSON at column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8; the file must be UTF-8") from error
    if not isinstance(entries, dict):
        raise DataError(f"{file}: found {describe(entries)}; must be an object: data set name -> description")
    return entries


def _explain(item: Any) -> str:
    place = ".".join(map(str, item["loc"])) or "the entry"
    if item["type"] == "extra_forbidden":
        known = _Columns.model_fields if item["loc"][0] == "columns" else _Tags.model_fields
        return f"{place}: no such key{suggest(str(item['loc'][-1]), known)}; have {names(known, 20)}"
    return f"{place}: found {describe(item['input'])}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _check(entry: _Entry) -> Iterator[str]:
    """Yield why an entry cannot be read."""
    columns = entry.columns
    for key in entry.model_extra or ():
        if close := suggest(key, _Entry.model_fields):  # other keys are the user's own notes
            yield f"{key}: no such key{close}"
    if entry.ranking and not (columns.chosen and columns.rejected):
        yield "ranking: true needs columns chosen and rejected, as LLaMA-Factory reads only the columns that are listed"
    if columns.kto_tag and entry.ranking:
        yield "has ranking: true and kto_tag, which exclude each other: rows are pairs, or answers judged alone"
    media = {"images": columns.images, "videos": columns.videos, "audios": columns.audios}
    if found := [name for name, column in media.items() if column]:
        yield f"has the columns {names(found)}; this version reads text only"
    yield from _check_place(entry)
    yield from _CHECKS[entry.formatting](entry)


def _check_place(entry: _Entry) -> Iterator[str]:
    if entry.hf_hub_url is not None:
        if "/" not in entry.hf_hub_url:
            yield f"hf_hub_url: found {entry.hf_hub_url!r}; the Hub names data sets owner/name"
    elif entry.ms_hub_url or entry.om_hub_url:
        yield "is on ModelScope or Modelers, which are not read; download it and give its file_name"
    elif entry.script_url:
        yield "is loaded by a script (script_url), which is not run; save its rows to a file and give its file_name"
    elif entry.cloud_file_name:
        yield "is in cloud storage (cloud_file_name), which is not read; download it and give its file_name"
    elif entry.file_name is None:
        yield "says neither file_name nor hf_hub_url"


def _check_alpaca(entry: _Entry) -> Iterable[str]:
    columns = entry.columns
    if columns.prompt is None:
        yield "columns: need prompt (and response), as LLaMA-Factory reads only the columns that are listed"
    elif columns.response is None and not entry.ranking and columns.query:
        yield "columns: have prompt and query but no response; plain text for pre-training has prompt only"


def _check_sharegpt(entry: _Entry) -> Iterable[str]:
    if entry.columns.messages is None:
        yield "columns: need messages, as LLaMA-Factory reads only the columns that are listed"


def _check_openai(entry: _Entry) -> Iterable[str]:
    yield from _check_sharegpt(entry)
    tags = entry.tags.model_dump(exclude_none=True)
    odd = {tag: value for tag, value in tags.items() if value != _OPENAI_TAGS.get(tag, value)}
    if odd:
        found = ", ".join(f"{tag}: {value}" for tag, value in odd.items())
        yield f"tags: found {found}; in the openai formatting they are fixed, use formatting sharegpt for others"


def _locate(entry: _Entry, file: Path) -> dict[str, Any]:
    if entry.hf_hub_url is None:
        assert entry.file_name is not None
        return {"path": str(file.parent / entry.file_name), "split": entry.split, "subset": entry.subset}
    return {"path": entry.hf_hub_url, "split": entry.split, "subset": entry.subset, "folder": entry.folder}


def _alpaca(entry: _Entry) -> dict[str, Any]:
    columns = entry.columns
    if columns.response is None and not entry.ranking:
        return {"format": "text", "columns": _renamed(text=columns.prompt)}
    return {
        "format": "alpaca",
        "columns": _renamed(
            instruction=columns.prompt,
            input=columns.query,
            output=None if entry.ranking else columns.response,
            history=columns.history,
            **_others(entry),
        ),
    }


def _sharegpt(entry: _Entry) -> dict[str, Any]:
    return {
        "format": {"type": "sharegpt", **entry.tags.model_dump(exclude_none=True)},
        "columns": _renamed(conversations=entry.columns.messages, **_others(entry)),
    }


def _openai(entry: _Entry) -> dict[str, Any]:
    return {
        "format": "openai",
        "columns": _renamed(messages=entry.columns.messages, **_others(entry)),
    }


def _others(entry: _Entry) -> dict[str, str | None]:
    """Return the columns that all formattings have: chosen and rejected are read where the entry says ranking."""
    columns = entry.columns
    chosen, rejected = (columns.chosen, columns.rejected) if entry.ranking else (None, None)
    shared = {"system": columns.system, "tools": columns.tools, "chosen": chosen, "rejected": rejected}
    return {**shared, "label": columns.kto_tag, "label_weight": None}


def _renamed(**columns: str | None) -> dict[str, str | None]:
    """Return the columns whose name in the file is another, or that are not to be read."""
    return {ours: theirs for ours, theirs in columns.items() if theirs != ours}


_FORMATS = {"alpaca": _alpaca, "sharegpt": _sharegpt, "openai": _openai}
_CHECKS = {"alpaca": _check_alpaca, "sharegpt": _check_sharegpt, "openai": _check_openai}
