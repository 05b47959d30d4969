"""Tell whether the model that an adapter was trained on is still the same one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_json

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


def fits_base(adapter: Path, base: Path) -> bool | None:
    """Return whether *base* holds the weights that *adapter* was trained on; None where that was not noted."""
    noted = adapter / _FILE
    if not noted.exists() or not base.is_dir():
        return None
    return bool(json.loads(noted.read_text("utf-8"))["fingerprint"] == fingerprint(base))


def base_mark(adapter: Path, base: str) -> str:
    """Return what tells the base that *adapter* was trained on from others: its fingerprint, or a Hub name."""
    noted = adapter / _FILE
    if noted.exists():
        return str(json.loads(noted.read_text("utf-8"))["fingerprint"])
    return fingerprint(Path(base)) if Path(base).is_dir() else base


def check_base(adapter: Path, base: Path) -> None:
    """Raise :class:`UserError` where *base* no longer holds the weights that *adapter* was trained on."""
    if fits_base(adapter, base) is False:
        raise UserError(
            f"{base} has changed since the adapter {adapter} was trained on it (was it trained again?); "
            "the two do not fit any more: train the adapter again"
        )
