"""How a base is quantized: as the recipe says, as its files are, or as an adapter remembers from its training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import Problem
from tunesmith.core.files import write_json
from tunesmith.models.quantization import QUANTIZATIONS, Quantization

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from transformers import PreTrainedConfig

    from tunesmith.models.schema import Model

_FILE = "quantization.json"
_SETTING = "model.quantization"


@dataclass(frozen=True)
class TrainedOn:
    """What an adapter remembers of the quantized base that it was trained on."""

    quantization: Quantization
    makes_up_for_it: bool = False
    """Whether the adapter holds what quantization lost, so that it belongs on the quantized weights alone."""


def remember_quantization(adapter: Path, trained_on: TrainedOn) -> None:
    """Note in *adapter* what it was trained on, so that its base is loaded in the same way again."""
    values = trained_on.quantization.model_dump(mode="json")
    write_json(adapter / _FILE, {"quantization": values, "makes_up_for_it": trained_on.makes_up_for_it})


def trained_on(adapter: Path) -> TrainedOn | None:
    """Return what *adapter* remembers; None where its base was not quantized by us."""
    noted = adapter / _FILE
    if not noted.exists():
        return None
    values = json.loads(noted.read_text("utf-8"))
    return TrainedOn(QUANTIZATIONS.parse(values["quantization"]), bool(values["makes_up_for_it"]))


def own_quantization(folder: Path) -> tuple[str, Quantization | None] | None:
    """Return how the files of *folder* are quantized, as transformers calls it and as we do; None where they are not.

    Folders only: what is on the Hub is known when its configuration is, by :func:`quantization_in`.
    """
    path = folder / "config.json"
    values = json.loads(path.read_text("utf-8")).get("quantization_config") if path.exists() else None
    return _read_quantization(values) if values else None


def quantization_in(config: PreTrainedConfig) -> tuple[str, Quantization | None] | None:
    """Return the same for the model of this *config*."""
    values = getattr(config, "quantization_config", None)
    if not values:
        return None
    return _read_quantization(values if isinstance(values, dict) else values.to_dict())


def settled_quantization(model: Model, config: PreTrainedConfig) -> Quantization | None:
    """Return how the base is quantized once it is loaded: as the recipe says, or as its files are."""
    own = quantization_in(config)
    return model.quantization or (own[1] if own else None)


def _read_quantization(values: dict[str, Any]) -> tuple[str, Quantization | None]:
    name = str(values.get("quant_method", "unknown"))
    if values.get("load_in_8bit"):
        return name, QUANTIZATIONS.parse("int8")
    if values.get("load_in_4bit"):
        double = bool(values.get("bnb_4bit_use_double_quant"))
        return name, QUANTIZATIONS.parse({"type": values.get("bnb_4bit_quant_type", "fp4"), "double": double})
    return name, QUANTIZATIONS.parse(name) if name in QUANTIZATIONS.names() else None


def loading_options(base: str, quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """Return what transformers is told to load *base* quantized; nothing where the files say it themselves."""
    if quantization.loses_bits and own_quantization(Path(base)) is not None:
        return {}
    config = quantization.configure(dtype)
    return {} if config is None else {"quantization_config": config}


def steady(model: Any) -> None:
    """Keep bitsandbytes from packing the weights of *model* another way as soon as it answers without gradients.

    On CPUs with AVX512-BF16 a layer packs itself for inference, rounds its scales for good, and from then on passes no
    gradient to its input, in training too.  Each layer has a switch.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False


def leave_file(model: Any) -> None:
    """Copy the whole weights of a quantized *model* from their mapped file, which would stay mapped for these few."""
    if is_quantized(model):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.is_floating_point():  # packed ones are made in memory
                tensor.data = tensor.data.clone()


def count_weights(parameter: Any) -> int:
    """Return how many weights *parameter* holds: of four bits, two share a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def is_quantized(model: Any) -> bool:
    """Return whether transformers loaded *model* (perhaps inside peft) with quantized weights."""
    return any(getattr(module, "hf_quantizer", None) is not None for module in model.modules())


def check_quantization(model: Model, recipe: Any) -> Iterable[Problem]:
    """Yield what does not go together: *model*'s quantization, its files, an adapter in its path, and the method."""
    asked, folder = model.quantization, _weights_of(model)
    if model.scratch is not None:
        if asked is not None:
            yield Problem(_SETTING, "a new model has no weights to quantize yet", hint="leave it out")
        return
    if folder is not None and (folder / "adapter_config.json").exists():
        yield from _check_adapter(model, folder)
    if folder is not None:
        yield from _check_whole(model, recipe, own_quantization(folder))
    elif asked is not None:
        yield from asked.check(recipe)


def check_loaded_config(model: Model, recipe: Any, config: PreTrainedConfig, device: str) -> Iterable[Problem]:
    """Yield what :func:`check_quantization` and :func:`check_device` could not know of a model on the Hub."""
    if model.path is None or _weights_of(model) is not None:
        return
    own = quantization_in(config)
    yield from _check_whole(model, recipe, own)
    if model.quantization is None and own is not None and own[1] is not None:
        yield from own[1].check_machine(device)


def _check_whole(model: Model, recipe: Any, own: tuple[str, Quantization | None] | None) -> Iterable[Problem]:
    """Yield what does not go together of *model*'s quantization, that of its files, and the method."""
    asked = settled = model.quantization
    if own is not None:
        yield from _check_files(model, own)
        settled = asked or own[1]
        if settled is None and recipe.method.needs_plain_weights:
            why = f"{model.path} is quantized ({own[0]}): {recipe.method.needs_plain_weights}"
            yield Problem("method", why, hint="use method: lora, or a model that is not quantized")
    elif asked is not None and (asked.only_reads or not asked.loses_bits):
        what = f"only reads models that were quantized before ({asked.only_reads})" if asked.only_reads else "unpacks"
        yield Problem(_SETTING, f"{asked.type_name()} {what}, and {model.path} is not quantized", hint="use nf4")
    if settled is not None:
        yield from settled.check(recipe)


def check_device(model: Model, device: str) -> Iterator[Problem]:
    """Yield why the base cannot compute on *device*."""
    folder = _weights_of(model)
    own = own_quantization(folder) if folder is not None else None
    settled = model.quantization or (own[1] if own else None)
    if settled is not None:
        yield from settled.check_machine(device)


def _weights_of(model: Model) -> Path | None:
    """Return the folder of *model*'s files, where it is one."""
    folder = Path(model.path or "")
    if model.path is None or not folder.is_dir():
        return None
    return folder / "weights" if (folder / "weights").is_dir() else folder


def _check_adapter(model: Model, adapter: Path) -> Iterator[Problem]:
    asked, before = model.quantization, trained_on(adapter)
    if model.adapter == "continue":
        if before is not None and asked != before.quantization:
            name = before.quantization.type_name()
            hint = f"set model.quantization: {before.quantization.model_dump(mode='json')}"
            yield Problem(_SETTING, f"{model.path} was trained on a base in {name}, and goes on as it began", hint=hint)
    elif asked is not None or before is not None:
        problem = f"merging the adapter in {model.path} into quantized weights would round them again"
        hint = f"first run: tunesmith export {quote(str(model.path))} --to FOLDER, then start from that folder"
        yield Problem("model.path", problem, hint=hint)


def _check_files(model: Model, own: tuple[str, Quantization | None]) -> Iterator[Problem]:
    """Yield settings that the files of a quantized model overrule."""
    asked, (name, found) = model.quantization, own
    if asked is None:
        return
    same = found is not None and found.type_name() == asked.type_name()
    if not same or (asked.loses_bits and asked != type(asked)()):
        problem = f"{model.path} is quantized already ({found.type_name() if found else name}), and stays as it is"
        yield Problem(_SETTING, problem, hint="leave it out")
