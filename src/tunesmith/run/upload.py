"""Send an exported model to the Hugging Face Hub, or to ModelScope: by explicit command, and only what is listed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.models.load import read_adapter_config
from tunesmith.run.folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

_HUBS = {"hub": "https://huggingface.co", "modelscope": "https://modelscope.cn/models"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# what a model consists of; anything else in the folder stays here
_KINDS = (".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt", ".md", ".Modelfile")
_PLAIN = ("Modelfile", "LICENSE", "NOTICE", ".gitattributes")
# says where on this machine things lie; what matters of it is in the card
_OURS = ("tunesmith.json", "verification.json")


@dataclass(frozen=True)
class Parcel:
    """What would be sent, and where to."""

    folder: Path
    hub: str
    name: str
    files: tuple[str, ...]
    left: tuple[str, ...]
    """Files of the folder that are not sent."""
    public: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    @property
    def address(self) -> str:
        """The page that it will have."""
        return f"{_HUBS[self.hub]}/{self.name}"


def make_parcel(folder: Path, to: str, *, public: bool = False) -> Parcel:
    """Return what of *folder* would go *to* ``hub:OWNER/NAME`` or ``modelscope:OWNER/NAME``; nothing is sent.

    Raises :class:`UserError` for a folder that is no exported model, and for an address that is none.
    """
    hub, _, name = to.partition(":")
    if hub not in _HUBS or not _NAME.fullmatch(name):
        raise UserError(f"--to: {to!r} is no place for a model; write hub:OWNER/NAME or modelscope:OWNER/NAME")
    if public and hub == "modelscope":
        raise UserError("--public: on ModelScope who sees a model is chosen on its site; leave it out")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the one that tunesmith export wrote")
    if RunFolder(folder).is_run:
        raise UserError(
            f"{folder} is a run: it holds data and paths of yours. Export it, and send that: "
            f"tunesmith export {folder} --to FOLDER; an adapter alone is in {folder / 'weights'}"
        )
    inside = sorted(path for path in folder.iterdir() if not path.is_dir())
    sent = [path.name for path in inside if _belongs(path)]
    if not any(name.endswith((".safetensors", ".gguf")) for name in sent):
        raise UserError(f"{folder} holds no model: no .safetensors and no .gguf")
    if (folder / "adapter_config.json").exists():
        base = str(read_adapter_config(folder)["base_model_name_or_path"])
        if Path(base).is_absolute():
            raise UserError(
                f"{folder / 'adapter_config.json'} names {base}, a folder of this machine, as its base; write the "
                "base's name on the hub there"
            )
    left = [path.name for path in folder.iterdir() if path.name not in sent]
    return Parcel(folder, hub, name, tuple(sent), tuple(sorted(left)), public)


def _belongs(path: Path) -> bool:
    if path.is_symlink() or path.name in _OURS:
        return False
    return path.name in _PLAIN or (path.suffix in _KINDS and not path.name.startswith("."))


def send(parcel: Parcel, listener: Listener = ignore) -> str:
    """Send *parcel*, and return the address of its page; the token is that of the environment, or of a log-in.

    Raises :class:`UserError` where there is no token, or the hub refuses; no message holds the token.
    """
    listener({"kind": "notice", "text": f"sending {len(parcel.files)} files to {parcel.address}"})
    (_to_hub if parcel.hub == "hub" else _to_modelscope)(parcel)
    return parcel.address


def _contents(parcel: Parcel) -> dict[str, Any]:
    """Return what both hubs' packages want to be told of a folder, by the same names."""
    return {
        "repo_id": parcel.name,
        "folder_path": str(parcel.folder),
        "repo_type": "model",
        "allow_patterns": list(parcel.files),
        "commit_message": "Model exported by Tunesmith",
    }


def _to_hub(parcel: Parcel) -> None:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = get_token()
    if token is None:
        raise UserError("the Hub wants to know who sends: hf auth login, or set HF_TOKEN")
    hub = HfApi(token=token)

    def carry() -> None:
        hub.create_repo(parcel.name, private=not parcel.public, repo_type="model", exist_ok=True)
        hub.upload_folder(**_contents(parcel))

    _carried(carry, parcel, token, (HfHubHTTPError, OSError, ValueError))


def _to_modelscope(parcel: Parcel) -> None:
    try:
        from modelscope.hub.api import HubApi
    except ImportError:
        raise UserError(
            "sending to ModelScope needs its package: pip install modelscope, then modelscope login"
        ) from None
    hub: Any = HubApi()

    def carry() -> None:
        # the package would make one that everybody sees, and call it Apache-2.0
        if not hub.repo_exists(parcel.name, repo_type="model"):
            raise UserError(
                f"there is no {parcel.name} on ModelScope yet; make it on modelscope.cn, where its licence and who "
                "sees it are chosen, and send again"
            )
        hub.upload_folder(**_contents(parcel))

    _carried(carry, parcel, "", (OSError, ValueError, RuntimeError))


def _carried(carry: Callable[[], None], parcel: Parcel, token: str, errors: tuple[type[Exception], ...]) -> None:
    """Turn what the hub refuses into a :class:`UserError` in which the token does not stand."""
    try:
        carry()
    except errors as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        said = said.replace(token, "…") if token else said
        raise UserError(f"{parcel.address} was not sent: {said}") from None
