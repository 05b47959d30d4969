"""Load or build a model and its tokenizer; say what is wrong in the user's words."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import suggest
from tunesmith.models.fingerprint import check_base
from tunesmith.models.new_tokenizer import make_tokenizer
from tunesmith.models.schema import Model, weights_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Place:
    """Where a model's files are: the base (a folder or Hub name) and, beside it, an adapter folder.

    ``merged`` are the adapters that the base was given before, in order: an adapter may be trained on a run with one.
    """

    base: str
    adapter: Path | None = None
    merged: tuple[Path, ...] = ()

    @property
    def adapters(self) -> tuple[Path, ...]:
        """Every adapter, in the order in which they were trained."""
        return self.merged if self.adapter is None else (*self.merged, self.adapter)

    @property
    def weights(self) -> str:
        """What was trained last: the adapter's folder, or the base."""
        return self.base if self.adapter is None else str(self.adapter)

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer is: the adapter's own copy, if it has one (it carries the template of training)."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").exists()
        return str(self.adapter) if own else self.base


def check_model(path: str) -> None:
    """Raise :class:`UserError` where *path* names no model, before anything is loaded; the Hub is not asked."""
    for problem in Model(path=path).check():
        raise UserError(str(Problem("", problem.message, hint=problem.hint)))


def find_model(path: str) -> Place:
    """Resolve a run, adapter or model folder, or a Hub name; raise :class:`UserError` for a folder that is none."""
    folder = Path(path)
    if not folder.is_dir():
        return Place(path)
    folder = weights_folder(folder)
    if (folder / "adapter_config.json").exists():
        base = json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        inner = find_model(base)
        return Place(inner.base, folder, inner.adapters)
    return Place(str(folder))


def load_tokenizer(model: Model, training_texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
    """Return the tokenizer of *model*, made from *training_texts* where the recipe asks for a new one."""
    if model.scratch is not None:
        wanted = model.scratch.tokenizer
        if not isinstance(wanted, str):
            return make_tokenizer(wanted, training_texts())
        return tokenizer_from(wanted)
    assert model.path is not None
    return tokenizer_from(
        find_model(model.path).tokenizer, revision=model.revision, trust_remote_code=model.trust_remote_code
    )


def tokenizer_from(path: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer by folder or Hub name."""
    from transformers import AutoTokenizer

    with _told(path, "tokenizer"):
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path, **options))


def load_stop_ids(model: Model) -> list[int]:
    """Return the tokens at which the model's own generation settings stop; none where it has no such settings."""
    from transformers import GenerationConfig

    if model.path is None:
        return []
    place = find_model(model.path)
    for where in filter(None, (place.adapter, place.base)):
        try:
            ids = GenerationConfig.from_pretrained(str(where), revision=model.revision or "main").eos_token_id
        except OSError:
            continue
        return [] if ids is None else ids if isinstance(ids, list) else [ids]
    return []


def load_config(model: Model, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Return the model's configuration; for a new model, the recipe's sizes over the architecture's own."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if model.scratch is None:
        assert model.path is not None
        with _told(model.path, "model"):
            place = find_model(model.path)
            options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
            return cast("PreTrainedConfig", AutoConfig.from_pretrained(place.base, **options))
    scratch = model.scratch
    if scratch.architecture not in CONFIG_MAPPING:
        near = suggest(scratch.architecture, list(CONFIG_MAPPING))
        raise UserError(f"model.scratch.architecture: transformers has no {scratch.architecture!r}{near}")
    plain = AutoConfig.for_model(scratch.architecture)
    unknown = [name for name in scratch.sizes if name not in plain.to_dict()]
    if unknown:
        near = suggest(unknown[0], list(plain.to_dict()))
        raise UserError(f"model.scratch.sizes.{unknown[0]}: {scratch.architecture} has no such setting{near}")
    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoConfig.for_model(scratch.architecture, **{**special, **scratch.sizes})


def load_model(model: Model, config: PreTrainedConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Return the model in *dtype* on the CPU, its earlier adapter merged in where it starts from a run."""
    import torch
    from transformers import AutoModelForCausalLM

    if model.scratch is not None:
        torch.manual_seed(seed)
        with _told(model.scratch.architecture, "model"):
            return cast("PreTrainedModel", AutoModelForCausalLM.from_config(config).to(dtype))
    assert model.path is not None
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    return model_from(find_model(model.path), dtype, merge=True, **options)


def model_from(place: Place, dtype: torch.dtype, *, merge: bool = False, **options: Any) -> PreTrainedModel:
    """Load the model at *place*; its last adapter stays beside it (a peft model) or is merged into the weights, too."""
    from transformers import AutoModelForCausalLM

    with _told(place.base, "model"):
        model = AutoModelForCausalLM.from_pretrained(place.base, dtype=dtype, use_safetensors=True, **options)
    base = Path(place.base)
    for adapter in place.adapters:
        from peft import PeftModel

        check_base(adapter, base)
        wrapped: Any = PeftModel.from_pretrained(model, str(adapter))
        model = wrapped.merge_and_unload() if merge or adapter != place.adapter else wrapped
        base = adapter
    return cast("PreTrainedModel", model)


@contextmanager
def _told(path: str, what: str) -> Iterator[None]:
    """Turn the loaders' errors into one sentence a user can act on."""
    from huggingface_hub.errors import HfHubHTTPError
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()
    library_logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model: cannot load the {what} {path}: {reason}") from error
