"""Many LoRA adapters on one base: every row of a pass has its own, or a blend of several, or none.

The factors of all adapters of a layer stand in one matrix each, one adapter below the other, so a pass takes two
products a layer however many adapters it mixes; between them each row keeps only what is its own adapter's, times its
weight there.  A blend is thus exactly the weighted sum of what its adapters do.  Nothing of the base is replaced: the
layers' outputs are added to.

Legend: K rows of a pass, W tokens a row, R ranks of the adapters that the pass uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunesmith.core.errors import UserError
from tunesmith.models.load import read_adapter_config
from tunesmith.models.schema import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tunesmith.generation.reply import AdapterWeights

_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")


@dataclass
class _Layer:
    """What all adapters add to one layer: ``[R, inputs]``, and ``[R, outputs]`` with their scales."""

    down: Tensor
    up: Tensor


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
        # adapter -> its first rank in all matrices, and how many it has
        self._ranks: dict[int, tuple[int, int]] = {}
        self._layers: dict[str, _Layer] = {}
        self._range = slice(0, 0)
        self._scales_KR: Tensor | None = None
        self._used: tuple[AdapterWeights, ...] = ()

    def read(self, folder: Path) -> Factors:
        """Return the adapter in *folder*, for :meth:`add`; raise :class:`UserError` where it does not fit the base."""
        return read_factors(folder, self._base)

    def add(self, key: int, factors: Factors) -> None:
        """Let rows use *factors* as *key*; never between :meth:`use` and the pass."""
        start = sum(count for _, count in self._ranks.values())
        for path in {*self._layers, *factors.layers}:
            layer = self._layers.get(path) or self._begin(path, factors, start)
            down, up = factors.layers.get(path, (None, None))
            layer.down = torch.cat((layer.down, _filled(down, layer.down, factors.rank)))
            layer.up = torch.cat((layer.up, _filled(up, layer.up, factors.rank)))
        self._ranks[key] = (start, factors.rank)
        self._used, self._scales_KR = (), None

    def remove(self, key: int) -> None:
        """Free the adapter *key*; no row may use it any more."""
        start, count = self._ranks.pop(key)
        for layer in self._layers.values():
            layer.down = torch.cat((layer.down[:start], layer.down[start + count :]))
            layer.up = torch.cat((layer.up[:start], layer.up[start + count :]))
        self._ranks = {
            other: (begin - count if begin > start else begin, ranks) for other, (begin, ranks) in self._ranks.items()
        }
        self._used, self._scales_KR = (), None

    def use(self, rows: Sequence[AdapterWeights]) -> None:
        """Have the rows of the next pass written by these; a single one holds for all rows."""
        if self._used == tuple(rows):
            return
        self._used = tuple(rows)
        keys = {key for row in rows for key, _ in row}
        if not keys:
            self._scales_KR = None
            return
        # from the first to the last adapter used: a range of rows of a matrix needs no copy
        first = min(self._ranks[key][0] for key in keys)
        last = max(sum(self._ranks[key]) for key in keys)
        like = next(iter(self._layers.values())).down
        scales_KR = torch.zeros(len(rows), last - first)
        for place, row in enumerate(rows):
            for key, weight in row:
                start, count = self._ranks[key]
                scales_KR[place, start - first : start - first + count] = weight
        self._range, self._scales_KR = slice(first, last), scales_KR.to(like)

    def _begin(self, path: str, factors: Factors, ranks: int) -> _Layer:
        """Let adapters add to the module at *path*, which the *ranks* that are there already do not."""
        down, up = factors.layers[path]
        layer = self._layers[path] = _Layer(down.new_zeros(ranks, down.shape[1]), up.new_zeros(ranks, up.shape[1]))

        def add(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:  # noqa: ARG001 - a hook's
            scales_KR = self._scales_KR
            if scales_KR is None:
                return None
            down_RI, up_RO = layer.down[self._range], layer.up[self._range]
            flat = inputs[0].reshape(-1, down_RI.shape[1])
            found = torch.mm(flat.to(down_RI.dtype), down_RI.T)
            if len(scales_KR) > 1:
                found = found.view(len(scales_KR), -1, found.shape[1]).mul_(scales_KR[:, None]).view_as(found)
            else:
                found = found.mul_(scales_KR)
            if output.dtype == up_RO.dtype and output.is_contiguous():
                output.view(-1, output.shape[-1]).addmm_(found, up_RO)
                return None
            return output + torch.mm(found, up_RO).view_as(output).to(output.dtype)

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
