"""Tell whether the model that an adapter was trained on is still the same one."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_json

if TYPE_CHECKING:
    from pathlib import Path

_FILE = "base_model.json"
_SAMPLES, _SAMPLE_BYTES = 8, 64 * 1024


def fingerprint(folder: Path) -> str:
    """Return a hash of samples of *folder*'s weight files: training changes all of a file."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def remember_base(adapter: Path, base: Path) -> None:
    """Note in *adapter* which weights it belongs to."""
    write_json(adapter / _FILE, {"path": str(base), "fingerprint": fingerprint(base)})


def check_base(adapter: Path, base: Path) -> None:
    """Raise :class:`UserError` where *base* no longer holds the weights that *adapter* was trained on."""
    noted = adapter / _FILE
    if noted.exists() and base.is_dir() and json.loads(noted.read_text("utf-8"))["fingerprint"] != fingerprint(base):
        raise UserError(
            f"{base} has changed since the adapter {adapter} was trained on it (was it trained again?); "
            "the two do not fit any more: train the adapter again"
        )
