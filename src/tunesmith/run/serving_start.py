"""From the command line's words to a service that answers: checked before a weight loads, then loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.core.registry import is_missing, suggest
from tunesmith.generation.presets import PRESETS
from tunesmith.models.load import check_model
from tunesmith.run.serving import Limits, Service
from tunesmith.run.serving_models import check_name, load_base, read_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.events import Listener

_DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to serve, and how."""

    model: str
    adapters: tuple[str, ...] = ()
    """``name=path`` and ``name=0.7*one+0.3*other`` words."""
    name: str | None = None
    device: str = "auto"
    limits: Limits = field(default_factory=Limits)
    batch: int = 32
    queue: int = 256
    kept_tokens: int = 4096
    context: int | None = None
    trust_remote_code: bool = False

    def check(self) -> None:
        """Raise :class:`UserError` for what is known to be wrong before anything is loaded."""
        missing = [package for package in ("fastapi", "uvicorn") if is_missing(package)]
        if missing:
            raise UserError(f"{' and '.join(missing)} is not installed: pip install 'tunesmith[serve]'")
        preset = self.limits.preset
        if preset is not None and preset not in PRESETS:
            raise UserError(
                f"--preset: there is no {preset!r}{suggest(preset, PRESETS)}; there are {', '.join(PRESETS)}"
            )
        if self.device not in _DEVICES:
            raise UserError(f"--device: there is no {self.device!r}; there are {', '.join(_DEVICES)}")
        if self.name is not None:
            check_name(self.name)
        check_model(self.model)
        paths, blends = read_named(self.adapters)
        for name, weights in blends.items():
            for part in weights:
                if part not in paths:
                    there = f"there are {', '.join(paths)}" if paths else "name adapters first, such as dufu=runs/dufu"
                    raise UserError(f"{name}: {part!r} is no adapter named here{suggest(part, paths)}; {there}")


def check_folders(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders from which requests may load adapters; raise :class:`UserError` for what is none."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--adapter-folder: {folder} is no folder")
    return tuple(folder.resolve() for folder in folders)


def begin(asked: Asked, listener: Listener) -> Service:
    """Load the model and its adapters, and start the engine; raise :class:`UserError` for what cannot be served."""
    from tunesmith.generation.batch import BatchLimits
    from tunesmith.generation.serving import BatchedEngine

    paths, blends = read_named(asked.adapters)
    if asked.trust_remote_code:
        listener({"kind": "notice", "text": f"code that comes with {asked.model} is run: --trust-remote-code says so"})
    listener({"kind": "notice", "text": f"loading {asked.model}"})
    loaded = load_base(
        asked.model, paths, name=asked.name, device=asked.device, trust_remote_code=asked.trust_remote_code
    )
    engine = BatchedEngine(
        loaded.model,
        loaded.template.tokenizer,
        limits=BatchLimits(rows=asked.batch, kept=asked.kept_tokens),
        waiting=asked.queue,
        context=asked.context,
        base=Path(loaded.root),
        notify=listener,
    )
    most = min(asked.limits.max_tokens, engine.context)
    try:
        return Service.begin(loaded, engine, replace(asked.limits, max_tokens=most), blends)
    except UserError:
        engine.close(drain=False)
        raise
