"""The part of a recipe that says which model to start from."""

from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import Block, suggest
from tunesmith.models.families import hub_name, short_names
from tunesmith.models.hub import HubName
from tunesmith.models.quantization import QUANTIZATIONS, Quantization
from tunesmith.models.rope import RopeScaling


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


ADAPTER_WEIGHTS = "adapter_model.safetensors"


def weights_folder(folder: Path) -> Path:
    """Return where the model of a run's, an adapter's or a model's *folder* is; raise :class:`UserError` for none."""
    inner = folder / "weights" if (folder / "weights").is_dir() else folder
    if (inner / "adapter_config.json").exists():
        _check_adapter_weights(inner)
        return inner
    if (inner / "config.json").exists():
        return inner
    if (folder / "recipe.yaml").exists() and (folder / "plan.json").exists():
        raise UserError(f"{folder} is a run without weights yet; finish it with: tunesmith resume {quote(str(folder))}")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise UserError(f"{folder} holds no model: expected config.json or adapter_config.json, found {found}")


def _check_adapter_weights(folder: Path) -> None:
    """Raise :class:`UserError` where an adapter has no weights that can be read without running what they say."""
    if (folder / ADAPTER_WEIGHTS).exists():
        return
    if (folder / "adapter_model.bin").exists():
        raise UserError(
            f"{folder} has its weights in adapter_model.bin, a pickle, which can run any code as it is read; ask for "
            f"{ADAPTER_WEIGHTS}, which peft's save_pretrained writes"
        )
    raise UserError(f"{folder} is an adapter without weights: {ADAPTER_WEIGHTS} is missing")


def _in_home(path: str | None) -> str | None:
    """Return *path* with ``~`` as the shell would write it."""
    return str(Path(path).expanduser()) if path and path.startswith("~") else path


def _as_descriptions(value: Any) -> Any:
    """Let a list of tokens stand for tokens without descriptions."""
    return dict.fromkeys(value, "") if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


class Model(Block):
    """What to start from."""

    short_for: ClassVar[str] = "path"

    path: Annotated[str | None, AfterValidator(_in_home)] = None
    """Hub name or short name (``qwen3-0.6b``), or folder of a model or of an earlier run, whose tuned model it is."""

    hub: HubName = "auto"
    """Where named models are downloaded from: ``huggingface`` or ``modelscope``; ``auto`` asks ``TUNESMITH_HUB``."""

    scratch: Scratch | None = None
    """Start from random weights instead."""

    adapter: Literal["merge", "continue"] = "merge"
    """Of a path with an adapter: ``merge`` it, so that training adds a new one on top, or ``continue`` to train it."""

    revision: str | None = None
    """Branch, tag or commit on the Hub."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""

    quantization: Annotated[SerializeAsAny[Quantization] | None, QUANTIZATIONS] = None
    """Keep the frozen weights in fewer bits, such as ``nf4``; left out, as they are in the files."""

    rope_scaling: RopeScaling | None = None
    """Squeeze rotary positions for texts longer than those of pretraining, such as ``{type: yarn, factor: 4}``."""

    new_tokens: Annotated[dict[str, str], BeforeValidator(_as_descriptions)] = {}
    """Tokens to add and train, each with words that say what it means, to begin from: ``{<味>: taste}``; or a list."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("needs exactly one of path and scratch")
        return self

    def _check_adapter(self) -> Iterable[Problem]:
        """Yield why there is no adapter to go on with."""
        if self.adapter == "merge":
            return
        folder = Path(self.path or "")
        if self.new_tokens:
            yield Problem("model.new_tokens", "an adapter that goes on has no room for them", hint="use adapter: merge")
        if self.path is not None and folder.is_dir():
            inner = folder / "weights" if (folder / "weights").is_dir() else folder
            if (inner / "adapter_config.json").exists():
                return
        found = self.path or "a new model"
        hint = "name a run or folder with adapter_config.json as model.path, or leave it out"
        yield Problem("model.adapter", f"{found} holds no adapter to go on with", hint=hint)

    def check(self) -> Iterable[Problem]:
        """Yield what is wrong with the path and the new tokens, without loading anything."""
        yield from self._check_adapter()
        for token in self.new_tokens:
            if not token.strip():
                yield Problem("model.new_tokens", f"{token!r} is no token", hint="give it a name, such as <taste>")
        if self.path is None:
            if self.new_tokens:
                why = "every token of a new model is new"
                yield Problem("model.new_tokens", why, hint="leave it out; what the data holds becomes tokens")
            return
        folder = Path(self.path)
        if folder.is_dir():
            try:
                weights_folder(folder)
            except UserError as error:
                yield Problem("model.path", str(error))
        elif folder.is_file():
            yield Problem("model.path", f"{self.path} is a file", hint="give the folder that holds config.json")
        elif self._names_no_model():
            siblings = [str(p) for p in folder.parent.glob("[!.]*") if p.is_dir()]
            if "/" not in self.path:
                siblings += short_names()
            hint = suggest(self.path, siblings).strip(" ()") or "give a folder, or a Hub name such as Qwen/Qwen3-0.6B"
            yield Problem("model.path", f"no such folder: {self.path}", hint=hint)

    def _names_no_model(self) -> bool:
        """Say whether the path, which is no folder, cannot be a name on a hub either."""
        assert self.path is not None
        if hub_name(self.path) != self.path:
            return False
        return self.path.startswith((".", "/", "~")) or self.path.count("/") != 1 or Path(self.path).parent.is_dir()
