"""Where a model that is named, not given as a folder, is downloaded from: the Hugging Face Hub, or ModelScope."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.core.errors import UserError
from tunesmith.core.settings import model_hub
from tunesmith.models.families import family_of, hub_name

if TYPE_CHECKING:
    from collections.abc import Iterator

HubName = Literal["auto", "huggingface", "modelscope"]

# formats that are never read, and weights, which a plan does without
_UNREAD = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]
_WEIGHTS = ["*.safetensors"]


def settled_hub(hub: HubName) -> str:
    """Return the hub that is meant: ``auto`` is what the environment says."""
    return model_hub() if hub == "auto" else hub


def locate(name: str, hub: HubName = "auto", revision: str | None = None, *, weights: bool = True) -> str:
    """Return where the model *name* is loaded from: its name on the Hub, or the folder ModelScope's files went to.

    Of ModelScope's, files other than *weights* alone are fetched where those are not needed.  Raises
    :class:`UserError` where the model cannot be had there.
    """
    if settled_hub(hub) == "huggingface":
        return hub_name(name)
    return _from_modelscope(modelscope_name(name), revision, weights)


@lru_cache  # it asks the hub again for every file that it has
def _from_modelscope(name: str, revision: str | None, weights: bool) -> str:
    try:
        from modelscope import snapshot_download
        from modelscope.hub.errors import NotExistError
    except ImportError:
        raise UserError(
            "model.hub: modelscope is not installed; pip install modelscope, or set model.hub: huggingface"
        ) from None
    skipped = _UNREAD if weights else _UNREAD + _WEIGHTS
    try:
        return str(snapshot_download(name, revision=revision, ignore_patterns=skipped))
    except (OSError, ValueError, NotExistError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"model: cannot download {name} from ModelScope: {reason}") from error


def name_notices(path: str, hub: HubName) -> Iterator[str]:
    """Yield what a name that is no folder stands for, and where it is downloaded from, where that is to be said."""
    if Path(path).exists():
        return
    full = hub_name(path)
    family = family_of(full)
    if full != path:
        assert family is not None
        yield f"model: {path} is {full}, of the family {family.name} (`tunesmith list models {path}`)"
    if family is not None and family.remote_code:
        yield f"model: transformers has no {family.model_type}; its code comes with it (model.trust_remote_code)"
    if settled_hub(hub) == "modelscope":
        said = "TUNESMITH_HUB says so" if hub == "auto" else "the recipe says so"
        yield f"model: {full} is downloaded from ModelScope as {modelscope_name(path)}, because {said}"


def modelscope_name(name: str) -> str:
    """Return what *name* is on ModelScope: as the table of families says, else the same.

    Raises :class:`UserError` for a known model that is not known to be there.
    """
    full = hub_name(name)
    family = family_of(full)
    if family is None or full not in family.models:
        return full
    found = family.on_modelscope(full)
    if not found:
        raise UserError(
            f"model: {full} is not known to be on ModelScope; give its name there as model.path, or set "
            "model.hub: huggingface"
        )
    return found
