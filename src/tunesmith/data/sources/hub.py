"""Data sets on the Hugging Face Hub."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.registry import suggest
from tunesmith.data.conversation import Origin, Record
from tunesmith.data.sources.tables import without_nulls

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class HubData:
    """A data set of the Hub, loaded (from the cache, or from the network)."""

    name: str
    rows: Any

    def __iter__(self) -> Iterator[Record]:
        for number, values in enumerate(self.rows, 1):
            yield Record({key: without_nulls(value) for key, value in values.items()}, Origin(self.name, number))

    def hash(self) -> str:
        """Return the SHA-256 of the rows as they are read, in hexadecimal."""
        digest = hashlib.sha256()
        for values in self.rows:
            digest.update(json.dumps(values, sort_keys=True, default=str).encode())
        return digest.hexdigest()


def is_hub_name(path: str, endings: frozenset[str]) -> bool:
    """Say whether *path*, which is no local file, is the name of a data set (owner/name) rather than a slip."""
    local = Path(path)
    if not _NAME.fullmatch(path) or any(suffix.lower() in endings for suffix in local.suffixes):
        return False
    # "data/trian" beside "data/train" is a slip; "openai/gsm8k" beside a folder "openai" need not be one.
    siblings = [file.name for file in local.parent.iterdir()] if local.parent.is_dir() else []
    stems = [name.partition(".")[0] for name in siblings]
    return local.name not in stems and not suggest(local.name, [*siblings, *stems])


def load_hub_data(name: str, subset: str | None, split: str, folder: str | None, take: int | None) -> HubData:
    """Return the first *take* rows of a split of *name*; raise :class:`DataError` if the Hub does not give it."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(name, name=subset, split=split, data_dir=folder)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(f"no such file or folder, and the Hub does not give the data set {name!r}: {error}") from error
    return HubData(name, rows if take is None else rows.select(range(min(take, len(rows)))))
