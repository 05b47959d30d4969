"""Load or build a model and its tokenizer; say what is wrong in the user's words."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import suggest
from tunesmith.models.fingerprint import check_base
from tunesmith.models.heads import auto_class, fitting_head, head_in, head_of_adapter, put_head
from tunesmith.models.hub import HubName, locate
from tunesmith.models.new_tokenizer import make_tokenizer
from tunesmith.models.new_tokens import add_tokens, begin_tokens, grow
from tunesmith.models.peft_warnings import quiet_peft
from tunesmith.models.quantized_base import TrainedOn, is_quantized, leave_file, loading_options, steady, trained_on
from tunesmith.models.rope import copy_rope, scale_rope
from tunesmith.models.schema import Model, Scratch, weights_folder
from tunesmith.models.sentencepiece_file import load_sentencepiece, sentencepiece_folder
from tunesmith.models.vocabulary import check_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.models.heads import Head


@dataclass(frozen=True)
class Place:
    """Where a model's files are: the base (a folder or Hub name) and, beside it, an adapter folder.

    ``merged`` are the adapters that the base was given before, in order: an adapter may be trained on a run with one.
    """

    base: str
    adapter: Path | None = None
    merged: tuple[Path, ...] = ()
    quantized: TrainedOn | None = None
    """How the base is quantized while it loads; its files may be so by themselves."""

    @property
    def adapters(self) -> tuple[Path, ...]:
        """Every adapter, in the order in which they were trained."""
        return self.merged if self.adapter is None else (*self.merged, self.adapter)

    @property
    def below(self) -> Place:
        """What the last adapter stands on, with no weight quantized while it loads."""
        earlier = self.merged[:-1]
        return Place(self.base, self.merged[-1] if self.merged else None, earlier)

    @property
    def weights(self) -> str:
        """What was trained last: the adapter's folder, or the base."""
        return self.base if self.adapter is None else str(self.adapter)

    @property
    def config(self) -> str:
        """Where the configuration is: a run that changed more than weights keeps its own beside its adapter."""
        own = (str(adapter) for adapter in reversed(self.adapters) if _has_config(adapter))
        return next(own, self.base)

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer is: the adapter's own copy, if it has one (it carries the template of training)."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").exists()
        return str(self.adapter) if own else self.base


def _has_config(adapter: Path) -> bool:
    return (adapter / "config.json").exists()


def check_model(path: str) -> None:
    """Raise :class:`UserError` where *path* names no model, before anything is loaded; the Hub is not asked."""
    for problem in Model(path=path).check():
        raise UserError(str(Problem("", problem.message, hint=problem.hint)))


def find_model(path: str, hub: HubName = "auto", revision: str | None = None, *, weights: bool = True) -> Place:
    """Resolve a run, adapter or model folder, or a name; raise :class:`UserError` for a folder that is none.

    A name on ModelScope becomes the folder that its files are downloaded to, without the *weights* where not needed.
    """
    folder = Path(path)
    if not folder.is_dir():
        return Place(locate(path, hub, revision, weights=weights))
    folder = weights_folder(folder)
    if (folder / "adapter_config.json").exists():
        inner = _find_base(folder)
        return Place(inner.base, folder, inner.adapters, trained_on(folder))
    return Place(str(folder))


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration; raise :class:`UserError` where it is none, or names no base."""
    path = folder / "adapter_config.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    missing = [name for name in ("peft_type", "base_model_name_or_path") if not found.get(name)]
    if missing:
        raise UserError(f"{path} has no {missing[0]}; write it there")
    return cast("dict[str, Any]", found)


def _find_base(adapter: Path) -> Place:
    base = str(read_adapter_config(adapter)["base_model_name_or_path"])
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"{adapter} was trained on {base}, which is not there any more; put it back, or write where it is now "
            f"as base_model_name_or_path in {adapter / 'adapter_config.json'}"
        )
    return find_model(base)


def _place(model: Model, *, weights: bool = False) -> Place:
    """Return where *model* is, which is no new one."""
    assert model.path is not None
    return find_model(model.path, model.hub, model.revision, weights=weights)


def start_place(model: Model) -> Place:
    """Return what training adds to: all that *model* names, but not the adapter that itself goes on training."""
    place = _place(model, weights=True)
    return place.below if model.adapter == "continue" else place


def changes_config(model: Model) -> bool:
    """Say whether training on *model* needs another configuration than that of what an adapter is put on."""
    if model.rope_scaling is not None or model.new_tokens:
        return True
    if model.path is None or model.adapter == "merge":
        return False
    place = _place(model)
    return place.adapter is not None and _has_config(place.adapter)


def can_be_read(name: str, seconds: float = 5) -> bool:
    """Say whether a model of the Hub has its configuration here, or answers within *seconds*.

    Loading would find out, too, but asks again and again for a minute and a half.
    """
    from urllib.request import urlopen

    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urlopen(f"{constants.ENDPOINT}/api/models/{name}", timeout=seconds):
            return True
    except OSError:
        return False


def load_tokenizer(model: Model, training_texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
    """Return the tokenizer of *model*, made from *training_texts* where the recipe asks for a new one."""
    if model.scratch is not None:
        wanted = model.scratch.tokenizer
        if not isinstance(wanted, str):
            return make_tokenizer(wanted, training_texts())
        return tokenizer_from(wanted)
    found = tokenizer_from(_place(model).tokenizer, revision=model.revision, trust_remote_code=model.trust_remote_code)
    add_tokens(found, model.new_tokens)
    return found


def tokenizer_from(path: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer by folder or Hub name."""
    from transformers import AutoTokenizer

    with _told(path, "tokenizer"):
        alone = sentencepiece_folder(path, options.get("revision"))
        found: Any = load_sentencepiece(alone, path) if alone is not None else None
        found = AutoTokenizer.from_pretrained(path, **options) if found is None else found
    if len(found) <= len(set(found.all_special_ids)):  # where no file is found some classes go without
        raise UserError(f"model: the tokenizer of {path} has no tokens; tokenizer.json or tokenizer.model is missing")
    return cast("PreTrainedTokenizerBase", found)


def load_stop_ids(model: Model) -> list[int]:
    """Return the tokens at which the model's own generation settings stop; none where it has no such settings."""
    from transformers import GenerationConfig

    if model.path is None:
        return []
    place = _place(model)
    for where in filter(None, (place.adapter, place.base)):
        try:
            ids = GenerationConfig.from_pretrained(str(where), revision=model.revision or "main").eos_token_id
        except OSError:
            continue
        return [] if ids is None else ids if isinstance(ids, list) else [ids]
    return []


def load_config(model: Model, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Return the model's configuration; for a new model, the recipe's sizes over the architecture's own."""
    from transformers import AutoConfig

    if model.scratch is not None:
        config = _new_config(model.scratch, tokenizer)
    else:
        assert model.path is not None
        with _told(model.path, "model"):
            place = _place(model)
            options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
            config = cast("PreTrainedConfig", AutoConfig.from_pretrained(place.config, **options))
    if model.rope_scaling is not None:
        scale_rope(config, model.rope_scaling)
    if model.new_tokens:
        text, ids = config.get_text_config(), tokenizer.convert_tokens_to_ids(list(model.new_tokens))
        check_room(tokenizer, text.vocab_size, len(model.new_tokens))
        text.vocab_size = max(text.vocab_size, max(ids) + 1)  # type: ignore[arg-type]
    return config


def _new_config(scratch: Scratch, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

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


def load_model(
    model: Model, config: PreTrainedConfig, dtype: torch.dtype, seed: int, head: Head | None = None
) -> PreTrainedModel:
    """Return the model in *dtype* on the CPU, with *head*, its earlier adapter merged in where it starts from a run."""
    import torch
    from transformers import AutoModelForCausalLM

    if model.scratch is not None:
        torch.manual_seed(seed)
        with _told(model.scratch.architecture, "model"):
            new = cast("PreTrainedModel", AutoModelForCausalLM.from_config(config))
        for parameter in new.parameters():  # and not the buffers: rotations need their float32
            parameter.data = parameter.data.to(dtype)
        return new if head is None else put_head(new, head, seed)
    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    place = _place(model)
    quantized = TrainedOn(model.quantization) if model.quantization is not None else None
    start = replace(start_place(model), quantized=quantized)
    found = model_from(start, dtype, merge=True, config=config, head=head, seed=seed, **options)
    if model.new_tokens:
        tokenizer = tokenizer_from(place.tokenizer, **options)
        add_tokens(tokenizer, model.new_tokens)
        begin_tokens(found, tokenizer, model.new_tokens, seed)
    return found


def model_from(
    place: Place,
    dtype: torch.dtype,
    *,
    merge: bool = False,
    unpack: bool = False,
    config: PreTrainedConfig | None = None,
    head: Head | None = None,
    seed: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """Load the model at *place*; its last adapter stays beside it (a peft model) or is merged into the weights, too.

    Rotary positions and rows for tokens are those of *config*; left out, those that its adapters were trained with.
    A quantized base is unpacked if *unpack* says so, before its adapters come.  With *head* the model has such a one,
    by *seed* where its files have none; without, files that hold one are refused, for they write no text.
    """
    import transformers
    from transformers import AutoConfig

    with _told(place.base, "model"):
        own = AutoConfig.from_pretrained(place.base, **options)
        wanted = config or (own if place.config == place.base else AutoConfig.from_pretrained(place.config))
        copy_rope(wanted, own)
        given = {"config": own, "dtype": dtype, "use_safetensors": True, **options}
        if place.quantized is not None:
            given |= loading_options(place.base, place.quantized.quantization, dtype)
        own_head = fitting_head(head_in(own), head, place.base)
        model: Any = getattr(transformers, auto_class(own_head)).from_pretrained(place.base, **given)
    steady(model)
    leave_file(model)
    if unpack and is_quantized(model):
        model = _unpacked(model, place.base, dtype)
    base = Path(place.base)
    for adapter in place.adapters:
        check_base(adapter, base)
        brought = fitting_head(head_of_adapter(adapter), head, str(adapter))
        if brought is not None and own_head is None:
            own_head, model = brought, put_head(model, brought, seed)
        if _has_config(adapter):
            grow(model, AutoConfig.from_pretrained(adapter).get_text_config().vocab_size)
        wrapped = load_adapter(model, adapter)
        with quiet_peft():
            model = merge_adapter(wrapped) if merge or adapter != place.adapter else wrapped
        base = adapter
    if merge or place.adapter is None:
        grow(model, wanted.get_text_config().vocab_size)
    return cast("PreTrainedModel", model if head is None or own_head is not None else put_head(model, head, seed))


def load_adapter(base: PreTrainedModel, folder: Path, name: str = "default") -> Any:
    """Return *base* with the adapter at *folder* on it as *name*; raise :class:`UserError` where it does not fit."""
    from peft import PeftModel

    with fitting(folder), quiet_peft():
        return PeftModel.from_pretrained(base, str(folder), adapter_name=name)


@contextmanager
def fitting(adapter: Path) -> Iterator[None]:
    """Turn what keeps the weights at *adapter* from being read, or put on a base, into a :class:`UserError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise UserError(f"the weights of {adapter} cannot be read (was a copy cut short?): {error}") from None
    except (ValueError, RuntimeError) as error:  # shapes that differ are a RuntimeError of torch
        raise UserError(f"{adapter} does not fit its base: {str(error).strip().splitlines()[-1].strip()}") from None


def plain_model_from(place: Place, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model at *place* as :func:`model_from` does, with no weight quantized.

    Those are the original weights, as the field merges QLoRA; unpacked ones where there are no others, or where the
    adapter makes up for what they lost.  Raises :class:`UserError` for a kind that cannot be unpacked.
    """
    original = place.quantized is not None and not place.quantized.makes_up_for_it
    return model_from(replace(place, quantized=None) if original else place, dtype, unpack=True)


def _unpacked(model: Any, base: str, dtype: torch.dtype) -> Any:
    """Return a plain model with *model*'s weights: *model* itself would be packed again where it is saved."""
    from transformers import AutoModelForCausalLM

    refusal = f"model: the quantized weights of {base} cannot be unpacked"
    try:
        weights = model.dequantize(dtype).state_dict()
        plain: Any = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{refusal}: {error}") from None
    if any(type(module).__name__ == "Conv1D" for module in plain.modules()):
        raise UserError(f"{refusal}: transformers leaves the matrices of {model.config.model_type} transposed")
    plain.load_state_dict(weights)
    plain.generation_config = model.generation_config
    return plain


def merge_adapter(model: Any, *, check: bool = False) -> PreTrainedModel:
    """Return the plain model that the peft *model* is with its adapter merged; *check* that it stays finite.

    Raises :class:`UserError` for an adapter that cannot become part of the weights.
    """
    kind = str(model.active_peft_config.peft_type.value).lower()
    refusal = f"model: an adapter of the kind {kind} cannot be merged into its base"
    if model.active_peft_config.is_prompt_learning:
        raise UserError(f"{refusal}: virtual tokens are no weights")
    try:
        return cast("PreTrainedModel", model.merge_and_unload(safe_merge=check))
    except NotImplementedError as error:
        raise UserError(f"{refusal}: {error}") from None


@contextmanager
def _told(path: str, what: str) -> Iterator[None]:
    """Turn the loaders' errors into one sentence a user can act on."""
    from huggingface_hub.errors import HfHubHTTPError
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()
    library_logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, ImportError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model: cannot load the {what} {path}: {reason}") from error
