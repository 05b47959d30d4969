"""Everything a run needs to go on as if it had never stopped, in folders that are whole or not there. No pickle.

``checkpoints/step-00000120/`` holds ``weights.safetensors`` (what trains), ``optimizer.*``, ``random-<rank>.*``,
``state.json``, ``method.*`` of methods that keep something, ``experience.*`` of stages that do, and ``average.*`` where
weights are averaged: the weights themselves, of which ``weights.safetensors`` then holds the average.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tunesmith.core.errors import UserError
from tunesmith.core.files import whole_folder, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

_NAME = re.compile(r"step-(\d{8})")


@dataclass
class Progress:
    """Where the loop stands; all that is not a tensor."""

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    seconds: float = 0.0
    schedule: dict[str, Any] = field(default_factory=dict)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return the complete checkpoints in *folder* as (step, path), oldest first."""
    found = [(int(m[1]), path) for path in folder.glob("step-*") if (m := _NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if (path / "state.json").exists())


def save_checkpoint(
    folder: Path,
    progress: Progress,
    weights: dict[str, Tensor],
    optimizer: Any,
    others: list[Any],
    kept: dict[str, Any],
) -> Path:
    """Write a checkpoint of the step in *progress*.

    *others* are the random states of all processes, by rank; *kept* is, by name, what method, moving average and
    experience keep beside *weights*; what is empty is not written.
    """
    path = folder / f"step-{progress.step:08d}"
    with whole_folder(path) as partial:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in weights.items()}, partial / "weights.safetensors"
        )
        save_tree(partial / "optimizer", optimizer)
        for name, tree in kept.items():
            if tree:
                save_tree(partial / name, tree)
        for rank, state in enumerate(others):
            save_tree(partial / f"random-{rank}", state)
        write_json(partial / "state.json", asdict(progress))
    return path


def prune_checkpoints(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest *keep* checkpoints and the best one."""
    for step, path in list_checkpoints(folder)[:-keep]:
        if step != best_step:
            shutil.rmtree(path)


def load_progress(path: Path) -> Progress:
    """Read where the loop stood."""
    return Progress(**json.loads((path / "state.json").read_text("utf-8")))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the trained weights of a checkpoint, by name."""
    return load_file(path / "weights.safetensors")


def load_weights(path: Path, model: nn.Module) -> None:
    """Copy the trained weights of a checkpoint into *model*; raise :class:`UserError` where they do not fit."""
    put_weights(read_weights(path), model, path)


def put_weights(saved: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    """Copy *saved* weights, which come from *path*, into *model*; raise :class:`UserError` where they do not fit."""
    own = training_weights(model)
    wrong = sorted(set(saved) ^ set(own)) or [n for n in own if own[n].shape != saved[n].shape]
    if wrong:
        raise UserError(f"{path} does not fit this run's model: weight {wrong[0]} differs ({len(wrong)} such weights)")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def training_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def random_state() -> dict[str, Any]:
    """Return the state of every random generator of this process."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every random generator back to *state*."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts and lists of tensors and plain values: tensors to safetensors, the rest to JSON."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def strip(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            found = value.detach().contiguous()
            place = found.untyped_storage().data_ptr()
            # the format takes no two tensors in one piece of memory; a copy of all would double the optimizer's
            tensors[str(len(tensors))] = found.clone() if place in storages else found
            storages.add(place)
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):
            return {"dict": [[key, strip(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list" if isinstance(value, list) else "tuple": [strip(item) for item in value]}
        assert value is None or isinstance(value, bool | int | float | str), f"cannot save {type(value).__name__}"
        return value

    skeleton = strip(tree)
    save_file(tensors, path.with_suffix(".safetensors"))
    write_json(path.with_suffix(".json"), skeleton)


def load_tree(path: Path) -> Any:
    """Read what :func:`save_tree` wrote."""
    tensors = load_file(path.with_suffix(".safetensors"))

    def fill(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: fill(item) for key, item in content}
        items = [fill(item) for item in content]
        return items if kind == "list" else tuple(items)

    return fill(json.loads(path.with_suffix(".json").read_text("utf-8")))
