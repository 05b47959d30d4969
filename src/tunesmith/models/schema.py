"""The part of a recipe that says which model to start from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tunesmith.core.errors import Problem
from tunesmith.core.registry import Block, suggest


class NewTokenizer(Block):
    """A tokenizer to be made from the training text, for a model that starts from nothing."""

    kind: Literal["characters", "bpe"] = "characters"
    """``characters``: one token a character, bytes for rare ones (small models, Chinese); ``bpe``: byte-level BPE."""

    vocabulary_size: Annotated[int, Field(ge=300)] = 8000
    """Most tokens it may have, the 256 bytes and the special ones included."""


class Scratch(Block):
    """A model with random weights, to be pretrained."""

    architecture: str = "qwen3"
    """A model type that transformers knows: qwen3, llama, gemma3_text, …"""

    sizes: dict[str, Any] = {}
    """The architecture's own settings, such as ``hidden_size`` and ``num_hidden_layers``."""

    tokenizer: NewTokenizer | str = NewTokenizer()
    """How to make the tokenizer, or a folder or Hub name to take one from."""


class Model(Block):
    """What to start from."""

    short_for: ClassVar[str] = "path"

    path: str | None = None
    """Hub name, folder of a model, or folder of an earlier run (its tuned model is then the base)."""

    scratch: Scratch | None = None
    """Start from random weights instead."""

    revision: str | None = None
    """Branch, tag or commit on the Hub."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("needs exactly one of path and scratch")
        return self

    def check(self) -> Iterable[Problem]:
        """Yield what is wrong with the path, without loading anything."""
        if self.path is None:
            return
        folder = Path(self.path)
        if folder.is_dir():
            if not any((folder / n).exists() for n in ("config.json", "adapter_config.json", "weights")):
                found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
                yield Problem(
                    "model.path", f"{self.path} holds no model (found {found})", hint="a model folder has config.json"
                )
        elif folder.is_file():
            yield Problem("model.path", f"{self.path} is a file", hint="give the folder that holds config.json")
        elif self.path.startswith((".", "/", "~")) or self.path.count("/") != 1 or folder.parent.is_dir():
            siblings = [str(p) for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
            hint = suggest(self.path, siblings).strip(" ()") or "give a folder, or a Hub name such as Qwen/Qwen3-0.6B"
            yield Problem("model.path", f"no such folder: {self.path}", hint=hint)
