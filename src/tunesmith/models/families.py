"""Families of models by name: what ``model: qwen3-0.6b`` means, and what a family's base models are trained with.

The table is ``families.toml``; it holds names, not files, so nothing here asks a hub.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

_FILE = Path(__file__).with_suffix(".toml")
# 8x7B and A3B stay whole: what counts is how the name says it
_SIZE = re.compile(r"(?<![A-Za-z\d.])E?\d+(?:x\d+)?(?:[._]\d+)?[BbMmTt](?![A-Za-z])(?:-A[\d.]+[Bb])?")
_ACTIVE = re.compile(r"(?<![A-Za-z])A\d+(?:\.\d+)?B(?![A-Za-z])")
_WORD = re.compile(
    r"(?i)(?<![a-z])(nano|tiny|mini|small|medium|large|xl|lite|air|plus|flash|pro|maverick|scout)(?![a-z])"
)
# what people leave out: who renamed the repository, in which format its files are, that it is pretrained
_LEFT_OUT = (re.compile(r"^meta-"), re.compile(r"-(hf|pt)$"))


@dataclass(frozen=True)
class Family:
    """Models of one architecture and generation, in several sizes."""

    name: str
    model_type: str
    """Architecture, as transformers calls it; of *remote_code*, as its own configuration does."""
    base: tuple[str, ...] = ()
    """Hub names of pretrained models."""
    chat: tuple[str, ...] = ()
    """Hub names of models that were tuned to answer; they come with a chat template."""
    template: str = ""
    """Named template for the base models, which may have none; empty where the family has none."""
    context: int | None = None
    """Tokens; None where sizes differ or it is not known."""
    licence: str = ""
    multimodal: bool = False
    remote_code: bool = False
    """Whether its architecture comes with the model, for want of one in transformers."""
    lora_exclude: str = ""
    """Layers that PEFT puts no LoRA on (``method.exclude``); all other linear ones are adapted."""
    modelscope: dict[str, str] = field(default_factory=dict, hash=False)
    """What a name, or its owner, is on ModelScope where it is another; empty where it is not known to be there."""

    @property
    def models(self) -> tuple[str, ...]:
        """Hub names of all models."""
        return (*self.base, *self.chat)

    def on_modelscope(self, name: str) -> str:
        """Return what the model *name* of this family is on ModelScope; empty where it is not known to be there."""
        owner, _, rest = name.partition("/")
        if name in self.modelscope:
            return self.modelscope[name]
        there = self.modelscope.get(owner, owner)
        return there and f"{there}/{rest}"

    @property
    def sizes(self) -> tuple[str, ...]:
        """Sizes as the names say them, in the table's order."""
        return tuple(dict.fromkeys(size for name in self.models if (size := size_of(name))))


@lru_cache
def families() -> tuple[Family, ...]:
    """Return the table, as it is in the file."""
    rows = tomllib.loads(_FILE.read_text("utf-8"))["family"]
    return tuple(
        Family(**{**row, "base": tuple(row.get("base", ())), "chat": tuple(row.get("chat", ()))}) for row in rows
    )


def size_of(name: str) -> str:
    """Return the size that a model's *name* says, ``0.6B``, ``30B-A3B`` or ``mini``; empty where it says none."""
    own = name.rpartition("/")[2]
    found = _SIZE.search(own) or _ACTIVE.search(own)
    if found:
        return found[0].replace("_", ".").upper().replace("X", "x")
    word = _WORD.search(own)
    return word[0].lower() if word else ""


@lru_cache
def short_names() -> dict[str, str]:
    """Return each short name, in lower case, with the Hub name it stands for."""
    names = [name for family in families() for name in family.models]
    found = {name.rpartition("/")[2].lower(): name for name in names}
    for short, name in list(found.items()):
        for pattern in _LEFT_OUT:
            found.setdefault(pattern.sub("", short), name)
    return found


def hub_name(path: str) -> str:
    """Return the Hub name that *path* is short for; *path* itself where it is no short name, or a folder's."""
    return path if "/" in path or Path(path).exists() else short_names().get(path.lower(), path)


def family_of(path: str) -> Family | None:
    """Return the family of a model by its name, or of a folder that is called like one and has its architecture."""
    folder = Path(path)
    if folder.is_dir():
        name = short_names().get(folder.resolve().name.lower())
        family = _family_with(name) if name else None
        return family if family is not None and _model_type(folder) == family.model_type else None
    return _family_with(hub_name(path))


def _family_with(name: str) -> Family | None:
    wanted = name.lower()
    for family in families():
        if any(wanted in (model.lower(), family.on_modelscope(model).lower()) for model in family.models):
            return family
    return None


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text("utf-8")).get("model_type", ""))
    except (OSError, ValueError):
        return ""
