"""Many LoRA adapters on one base: every row of a pass has its own, or a blend of several, or none.

The factors of all adapters of a layer stand in one matrix each, one adapter below the other.  What a pass does with
them depends on its rows (:mod:`tunesmith.generation.adapter_rows`); a blend is always exactly the weighted sum of what
its adapters do.  Nothing of the base is replaced: the layers' outputs are added to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunesmith.core.errors import UserError
from tunesmith.generation.adapter_rows import Layer, Rows, arrange
from tunesmith.models.load import read_adapter_config
from tunesmith.models.schema import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tunesmith.generation.reply import AdapterWeights

_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Factors:
    """An adapter as it was read: for each layer ``[rank, inputs]`` and ``[rank, outputs]``, scaled."""

    rank: int
    layers: Mapping[str, tuple[Tensor, Tensor]]


class AdapterBank:
    """The adapters of one model, and which of them the rows of the next pass use."""

    def __init__(self, base: Any) -> None:
        """Take the transformers model that they add to."""
        self._base = base
        # adapter -> its ranks in all matrices
        self._ranks: dict[int, range] = {}
        self._layers: dict[str, Layer] = {}
        self._used: tuple[AdapterWeights, ...] = ()
        self._rows: Rows | None = None

    def read(self, folder: Path) -> Factors:
        """Return the adapter in *folder*, for :meth:`add`; raise :class:`UserError` where it does not fit the base."""
        return read_factors(folder, self._base)

    def add(self, key: int, factors: Factors) -> None:
        """Let rows use *factors* as *key*; never between :meth:`use` and the pass."""
        start = sum(map(len, self._ranks.values()))
        for path in {*self._layers, *factors.layers}:
            layer = self._layers.get(path) or self._begin(path, factors, start)
            down, up = factors.layers.get(path, (None, None))
            layer.change(
                torch.cat((layer.down, _filled(down, layer.down, factors.rank))),
                torch.cat((layer.up, _filled(up, layer.up, factors.rank))),
            )
        self._ranks[key] = range(start, start + factors.rank)
        self._used, self._rows = (), None

    def remove(self, key: int) -> None:
        """Free the adapter *key*; no row may use it any more."""
        gone = self._ranks.pop(key)
        for layer in self._layers.values():
            layer.change(
                torch.cat((layer.down[: gone.start], layer.down[gone.stop :])),
                torch.cat((layer.up[: gone.start], layer.up[gone.stop :])),
            )
        for other, ranks in self._ranks.items():
            if ranks.start > gone.start:
                self._ranks[other] = range(ranks.start - len(gone), ranks.stop - len(gone))
        self._used, self._rows = (), None

    def use(self, rows: Sequence[AdapterWeights]) -> None:
        """Have the rows of the next pass written by these; a single one holds for all rows."""
        if self._used == tuple(rows):
            return
        self._used, self._rows = tuple(rows), None
        if any(rows):
            like = next(iter(self._layers.values())).down
            self._rows = arrange([tuple((self._ranks[key], weight) for key, weight in row) for row in rows], like)

    def _begin(self, path: str, factors: Factors, ranks: int) -> Layer:
        """Let adapters add to the module at *path*, which the *ranks* that are there already do not."""
        down, up = factors.layers[path]
        layer = self._layers[path] = Layer(down.new_zeros(ranks, down.shape[1]), up.new_zeros(ranks, up.shape[1]))

        def add(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:  # noqa: ARG001 - a hook's
            if self._rows is None:
                return None
            given = inputs[0] if inputs[0].dtype == layer.up.dtype else inputs[0].to(layer.up.dtype)
            if output.dtype == layer.up.dtype and output.is_contiguous():
                self._rows.add(layer, given, output)
                return None
            added = torch.zeros(output.shape, dtype=layer.up.dtype, device=output.device)
            self._rows.add(layer, given, added)
            return output + added.to(output.dtype)

        self._base.get_submodule(path).register_forward_hook(add)
        return layer


def read_factors(folder: Path, base: Any) -> Factors:
    """Return the LoRA adapter in *folder* with its scales; raise :class:`UserError` where *base* cannot take it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = _checked_config(folder), folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder} has no {ADAPTER_WEIGHTS}; adapters are loaded from safetensors files only")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {error}") from None
    if other := sorted(name for name in found if not name.startswith(_PREFIX) or not name.endswith(_PARTS)):
        raise UserError(
            f"{folder} holds more than LoRA's two factors of layers ({other[0]}): make it a plain LoRA with "
            f"tunesmith adapter convert {folder}, or merge it with tunesmith export"
        )
    layers = {}
    for name in sorted(found):
        if name.endswith(_PARTS[0]):
            module = name.removeprefix(_PREFIX).removesuffix(_PARTS[0])
            up = found.get(name.replace(*_PARTS))
            if up is None:
                raise UserError(f"{path} has {name} without its second factor; the file is not complete")
            layers[module] = _fitting(module, base, found[name], up, _scale(config, module, len(found[name])), folder)
    if not layers:
        raise UserError(f"{path} holds no adapter: there are no factors in it")
    return Factors(max(len(down) for down, _ in layers.values()), layers)


def _checked_config(folder: Path) -> dict[str, Any]:
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} has no adapter_config.json: name the folder of an adapter")
    config = read_adapter_config(folder)
    convert = f"make it a plain LoRA with tunesmith adapter convert {folder}, or merge it with tunesmith export"
    if config["peft_type"] != "LORA" or config.get("use_dora"):
        kind = "dora" if config.get("use_dora") else str(config["peft_type"]).lower()
        raise UserError(f"{folder} is a {kind} adapter, and only LoRA runs beside others: {convert}")
    parts = ("modules_to_save", "trainable_token_indices", "target_parameters", "alora_invocation_tokens")
    if wrong := [name for name in parts if config.get(name)]:
        raise UserError(f"{folder} changes more than layers ({wrong[0]}), and only LoRA runs beside others: {convert}")
    return config


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what peft multiplies the product of the factors of *module* by."""
    from peft.utils.other import get_pattern_key

    alphas = dict(config.get("alpha_pattern") or {})
    alpha = float(alphas.get(get_pattern_key(list(alphas), module), config.get("lora_alpha") or 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _fitting(module: str, base: Any, down: Tensor, up: Tensor, scale: float, folder: Path) -> tuple[Tensor, Tensor]:
    """Return the factors of one layer as the bank holds them; raise :class:`UserError` where the layer is another."""
    try:
        layer = base.get_submodule(module)
    except AttributeError:
        raise UserError(f"{folder} does not fit the model, which has no layer {module}: was it another base?") from None
    sizes = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    if sizes == (None, None) and getattr(layer, "weight", None) is not None:
        sizes = tuple(layer.weight.shape)  # transformers' Conv1D: inputs first
    if (down.shape[1], up.shape[0]) != sizes:
        raise UserError(
            f"{folder} does not fit the model: {module} takes {sizes[0]} numbers to {sizes[1]}, and the adapter "
            f"{down.shape[1]} to {up.shape[0]}"
        )
    device, dtype = base.device, base.dtype if base.dtype.is_floating_point else torch.float32
    return down.to(device, dtype), (up.T * scale).to(device, dtype).contiguous()


def _filled(factor: Tensor | None, like: Tensor, rank: int) -> Tensor:
    """Return *factor* with as many rows as *rank*; zeros where the adapter has none for this layer."""
    filled = like.new_zeros(rank, like.shape[1])
    if factor is not None:
        filled[: len(factor)] = factor
    return filled
