"""Adapters as objects: look at one, add several up, write one where everything that loads models finds all it needs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.files import check_new_folder, whole_folder
from tunesmith.core.registry import suggest
from tunesmith.models.fingerprint import base_mark, check_base, fingerprint, fits_base, remember_base
from tunesmith.models.load import (
    check_model,
    find_model,
    fitting,
    load_adapter,
    model_from,
    read_adapter_config,
    tokenizer_from,
)
from tunesmith.models.peft_warnings import quiet_peft
from tunesmith.models.quantized_base import remember_quantization
from tunesmith.models.schema import ADAPTER_WEIGHTS
from tunesmith.run.evaluate import model_stop_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedConfig

    from tunesmith.models.load import Place

_PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
WAYS = ("linear", "svd", "cat", *_PRUNING, *(f"{way}_svd" for way in _PRUNING))
"""Ways to add adapters, by peft's names.  ``svd`` and ``cat`` are the weighted sum of what the adapters do to the
weights, the former cut to a rank; those without ``svd`` treat A and B by themselves, and are rough."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, looked at without loading it."""

    place: Place
    config: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        assert self.place.adapter is not None
        return self.place.adapter

    @property
    def kind(self) -> str:
        """The kind as recipes call it, where ours and peft's names agree: lora, dora, rslora, loha, oft."""
        variants = {"use_dora": "dora", "use_rslora": "rslora"}
        found = [name for flag, name in variants.items() if self.config.get(flag)]
        return " + ".join(found) or str(self.config["peft_type"]).lower()

    @property
    def ranks(self) -> set[int]:
        """Every rank that a module of a LoRA adapter has, as far as its configuration says."""
        return {self.config["r"], *(self.config.get("rank_pattern") or {}).values()}

    @property
    def targets(self) -> list[str]:
        """The names of the modules it adapts, without their blocks; or one regular expression."""
        targets = self.config.get("target_modules") or []
        named = [targets] if isinstance(targets, str) else sorted({name.rpartition(".")[2] for name in targets})
        return named + sorted(self.config.get("target_parameters") or [])

    def count(self) -> int:
        """Return how many numbers it holds; raise :class:`UserError` where its file is broken."""
        from safetensors import safe_open

        with fitting(self.folder), safe_open(self.folder / ADAPTER_WEIGHTS, framework="numpy") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - no mapping
        count = 0
        for shape in shapes:
            size = 1
            for side in shape:
                size *= side
            count += size
        return count


@dataclass(frozen=True, kw_only=True)
class Description:
    """What ``tunesmith adapter show`` says."""

    path: str
    kind: str
    rank: int | None
    alpha: float | None
    targets: list[str]
    whole_modules: list[str]
    """Modules that are saved whole beside it."""
    parameters: int
    bytes: int
    base: str
    stands_on: list[str]
    """Adapters that are merged into the base first, in order."""
    base_unchanged: bool | None
    """Whether the base still has the weights that it was trained on; None where that was not noted."""

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


def read_adapter(path: str) -> Adapter:
    """Return the adapter of a run's or an adapter's folder; raise :class:`UserError` where *path* holds none."""
    check_model(path)
    place = find_model(path)
    if place.adapter is None:
        found = "a whole model" if Path(path).is_dir() else "no folder here"
        raise UserError(f"{path} is not an adapter but {found}; expected a folder with adapter_config.json")
    return Adapter(place, read_adapter_config(place.adapter))


def describe_adapter(path: str) -> Description:
    """Return what the adapter at *path* is; raise :class:`UserError` where it is none."""
    adapter = read_adapter(path)
    config = adapter.config
    rank = config.get("r", config.get("rank"))
    return Description(
        path=str(adapter.folder),
        kind=adapter.kind,
        rank=rank if isinstance(rank, int) else None,
        alpha=config.get("lora_alpha", config.get("alpha")),
        targets=adapter.targets,
        whole_modules=list(config.get("modules_to_save") or []),
        parameters=adapter.count(),
        bytes=(adapter.folder / ADAPTER_WEIGHTS).stat().st_size,
        base=adapter.place.base,
        stands_on=[str(path) for path in adapter.place.merged],
        base_unchanged=fits_base(adapter.folder, Path(adapter.place.below.weights)),
    )


def check_named_once(paths: Sequence[str], weights: Sequence[str]) -> None:
    """Raise :class:`UserError` where two of *paths* lead to the same *weights*."""
    found: dict[str, str] = {}
    for path, own in zip(paths, weights, strict=True):
        place = str(Path(own).resolve()) if Path(own).is_dir() else own
        if place in found:
            twice = f"{path} is named twice" if found[place] == path else f"{found[place]} and {path} are the same"
            raise UserError(f"{twice}; name it once, and give it a larger weight with --weights")
        found[place] = path


def check_same_base(adapters: Sequence[Adapter]) -> None:
    """Raise :class:`UserError` unless all adapters were trained on the same weights, and those are still there."""
    first, *others = adapters
    for adapter in adapters:
        check_base(adapter.folder, Path(adapter.place.below.weights))
    for other in others:
        ours, theirs = (base_mark(each.folder, each.place.below.weights) for each in (first, other))
        if ours != theirs:
            raise UserError(
                f"{first.folder} and {other.folder} were trained on different bases: "
                f"{first.place.below.weights} and {other.place.below.weights}"
            )


def check_adapters_on(base: str, adapters: Sequence[Adapter]) -> None:
    """Raise :class:`UserError` unless *adapters* are of one kind and were trained on the model *base*."""
    check_model(base)
    weights = find_model(base).weights
    kinds = {each.config["peft_type"] for each in adapters}
    if len(kinds) > 1:
        raise UserError(
            f"adapters of different kinds ({', '.join(sorted(kinds)).lower()}) do not share a base in memory; "
            "make them LoRA with: tunesmith adapter convert"
        )
    for adapter in adapters:
        if (adapter.folder / "config.json").exists():
            raise UserError(f"{adapter.folder} changed more than weights (tokens, positions): load it alone")
        fits = fits_base(adapter.folder, Path(weights))
        if fits is None and (noted := adapter.place.below.weights) != weights:
            # of a Hub name and a folder nobody knows whether they are the same
            fits = (
                Path(noted).is_dir()
                and Path(weights).is_dir()
                and fingerprint(Path(noted)) == fingerprint(Path(weights))
            )
        if fits is False:
            raise UserError(f"{adapter.folder} was trained on {adapter.place.below.weights}, not on {weights}")


def add_adapters(  # noqa: PLR0913 - as many as the command has
    paths: Sequence[str],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    how: str = "svd",
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    listener: Listener = ignore,
) -> Path:
    """Write the weighted sum of LoRA adapters on one base to the new folder *output*; equal *weights* where None.

    *density* is the share of entries that ties, dare and magnitude_prune keep, *rank* that of an ``svd`` result (the
    largest of the adapters' where None), *seed* what dare drops by.  Raises :class:`UserError` for what does not fit
    together.
    """
    problems = list(_option_problems(paths, weights, how, density, rank))
    if problems:
        raise UserError("\n".join(problems))
    check_new_folder(output)
    adapters = [read_adapter(path) for path in paths]
    check_named_once(paths, [str(adapter.folder) for adapter in adapters])
    problems = [problem for adapter in adapters for problem in _cannot_add(adapter, how, adapters)]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    check_same_base(adapters)
    names = ", ".join(str(adapter.folder) for adapter in adapters)
    listener({"kind": "notice", "text": f"adding {names} on {adapters[0].place.below.weights}"})
    model = _added(adapters, weights or [1 / len(adapters)] * len(adapters), how, density, rank, seed)
    like = adapters[0].place
    template = tokenizer_from(like.tokenizer).chat_template
    for other in adapters[1:]:
        if tokenizer_from(other.place.tokenizer).chat_template != template:
            text = f"{other.folder} was trained with another chat template; the sum has that of {adapters[0].folder}"
            listener({"kind": "notice", "text": text})
    write_adapter(model, output, like.below, like)
    return output


def _option_problems(
    paths: Sequence[str], weights: Sequence[float] | None, how: str, density: float | None, rank: int | None
) -> Iterator[str]:
    if how not in WAYS:
        yield f"--how: no way {how!r}{suggest(how, list(WAYS))}; there are {', '.join(WAYS)}"
        return
    if weights is not None and len(weights) != len(paths):
        yield f"--weights: {len(weights)} of them for {len(paths)} adapters; give one for each, in their order"
    elif weights is not None and not (all(map(math.isfinite, weights)) and any(weights)):
        yield f"--weights: {', '.join(map(str, weights))}: give finite numbers that are not all 0, such as 0.7,0.3"
    prunes = how.startswith(_PRUNING)
    if prunes and density is None:
        yield f"--density: {how} needs it: the share of entries to keep, such as 0.5"
    if not prunes and density is not None:
        yield f"--density: {how} keeps all entries; leave it out, or use --how ties"
    if density is not None and not 0 < density <= 1:
        yield f"--density: {density:g} is no share; give more than 0 and at most 1"
    if rank is not None and not how.endswith("svd"):
        yield f"--rank: {how} has no rank to choose; leave it out, or use --how svd"


def _cannot_add(adapter: Adapter, how: str, adapters: Sequence[Adapter]) -> Iterator[str]:
    """Yield why *adapter* cannot be part of a sum."""
    folder, config = adapter.folder, adapter.config
    if config["peft_type"] != "LORA" or config.get("use_dora"):
        yield f"{folder} is a {adapter.kind} adapter; only LoRA can be added: tunesmith adapter convert {folder} first"
        return
    parts = {
        "modules saved whole": config.get("modules_to_save"),
        "tokens of its own": config.get("trainable_token_indices"),
        "stacked experts": config.get("target_parameters"),
        "biases": config.get("bias", "none") != "none",
    }
    for name in (name for name, value in parts.items() if value):
        yield f"{folder} has {name}, which peft cannot weigh"
    if (folder / "config.json").exists():
        yield f"{folder} changed more than weights (tokens, positions), which nothing can add"
    ranks = [each.ranks for each in adapters if each.config["peft_type"] == "LORA"]
    if how in ("linear", *_PRUNING) and len(set.union(*ranks)) > 1:
        found = ", ".join(f"{min(each)} to {max(each)}" if len(each) > 1 else str(min(each)) for each in ranks)
        yield f"--how: {how} needs one rank throughout, found {found}; use svd or cat"


def _added(
    adapters: Sequence[Adapter], weights: Sequence[float], how: str, density: float | None, rank: int | None, seed: int
) -> Any:
    """Return the base with the sum as its adapter ``default``."""
    import torch

    names = [f"part_{number}" for number in range(len(adapters))]
    base = model_from(adapters[0].place.below, torch.float32, merge=True)
    model = load_beside(base, dict(zip(names, (each.folder for each in adapters), strict=True)))
    for name in names:
        # their scales are in the layers by now; the sum must have a plain one, and must not be initialised from weights
        model.peft_config[name].use_rslora = False
        model.peft_config[name].init_lora_weights = True
    with quiet_peft(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        try:
            model.add_weighted_adapter(
                names, list(weights), "default", how, density=density, svd_rank=rank, svd_full_matrices=False
            )
        except ValueError as error:
            raise UserError(f"peft cannot add these adapters: {error}") from None
        _fill_up(model)
    return model


def _fill_up(model: Any) -> None:
    """Give every layer the rank that the configuration says: of a small matrix peft's svd finds fewer directions."""
    from torch.nn.functional import pad

    rank = model.peft_config["default"].r
    for module in model.modules():
        factors = getattr(module, "lora_A", {})
        if "default" in factors:
            down, up = factors["default"].weight, module.lora_B["default"].weight
            down.data, up.data = pad(down.data, (0, 0, 0, rank - len(down))), pad(up.data, (0, rank - up.shape[1]))


def load_beside(base: Any, folders: dict[str, Path]) -> Any:
    """Return *base* with several adapters, by name, in its memory; the first is active."""
    (first, folder), *others = folders.items()
    model = load_adapter(base, folder, first)
    for name, folder in others:
        with fitting(folder), quiet_peft():
            model.load_adapter(str(folder), name)
    return model


def write_adapter(model: Any, target: Path, base: Place, like: Place, config: PreTrainedConfig | None = None) -> None:
    """Write the adapter ``default`` of a peft *model* for *base*, with tokenizer and stop tokens of *like*.

    *config* is that of its training, where this is another than the base's.
    """
    on = Path(base.weights).resolve() if Path(base.weights).is_dir() else None
    adapter_config, inner = model.peft_config["default"], model.get_base_model()
    adapter_config.base_model_name_or_path = str(on or base.weights)
    adapter_config.inference_mode = True
    generation = inner.generation_config
    generation.eos_token_id = model_stop_ids(like, inner) or None
    with whole_folder(target) as partial, quiet_peft():
        model.save_pretrained(partial, selected_adapters=["default"], save_embedding_layers=False)
        if on is not None:
            remember_base(partial, on)
        if like.quantized is not None:
            remember_quantization(partial, like.quantized)
        if config is not None:
            config.save_pretrained(partial)
        tokenizer_from(like.tokenizer).save_pretrained(partial)
        generation.save_pretrained(partial)
