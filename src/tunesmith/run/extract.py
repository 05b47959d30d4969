"""Turn the difference of two models into a LoRA adapter: what was merged, or trained in full, becomes small again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.files import check_new_folder
from tunesmith.models.load import check_model, find_model, model_from
from tunesmith.models.peft_warnings import quiet_peft
from tunesmith.models.rope import same_rope
from tunesmith.run.adapters import read_adapter, write_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tunesmith.models.load import Place

# directions beyond the rank that the randomised decomposition looks at, and its rounds: both cost time only
_SPARE, _ROUNDS = 16, 6


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """An adapter made from a difference, and what it holds of it."""

    path: str
    rank: int
    layers: int
    """Linear layers that differ, and got an adapter."""
    kept: dict[int, float]
    """Rank -> share of the squared Frobenius norm of those layers' difference that this rank holds."""
    whole: list[str]
    """Modules saved whole."""
    left_out: list[str]
    """Weights that differ and are not in the adapter: norms, embeddings, biases."""
    outside: float
    """Share of the whole difference (squared) that these weights have."""

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True)
class _Factors:
    """The best approximation B A of a matrix, each of the two with the roots of the singular values."""

    down: Tensor
    up: Tensor
    squares: Tensor
    """Squared singular values, the largest first."""
    total: float
    """Sum of all squares of the matrix."""


def convert(path: str, output: Path, *, rank: int = 16, whole: bool = False, listener: Listener = ignore) -> Extracted:
    """Write the adapter at *path*, of any kind that can be merged, as a LoRA adapter of *rank* to *output*."""
    adapter = read_adapter(path)
    return _extract(adapter.place, adapter.place.below, output, rank, whole=whole, listener=listener)


def extract(
    tuned: str, base: str, output: Path, *, rank: int = 16, whole: bool = False, listener: Listener = ignore
) -> Extracted:
    """Write what *tuned* has learnt over *base* as a LoRA adapter of *rank* to the new folder *output*.

    With *whole*, modules that differ and are no matrices are saved beside it.  Raises :class:`UserError` for models
    that are not of one shape, or do not differ.
    """
    for path in (tuned, base):
        check_model(path)
    return _extract(find_model(tuned), find_model(base), output, rank, whole=whole, listener=listener)


def _extract(tuned: Place, base: Place, output: Path, rank: int, *, whole: bool, listener: Listener) -> Extracted:
    import torch

    check_new_folder(output)
    _check_shapes(tuned, base)
    listener({"kind": "notice", "text": f"comparing {tuned.weights} with {base.weights}"})
    after: Any = model_from(replace(tuned, quantized=None), torch.float32, merge=True, unpack=True)
    before: Any = model_from(replace(base, quantized=None), torch.float32, merge=True, unpack=True)
    targets, others = _changed(after, before)
    if not targets and not others:
        raise UserError(f"{tuned.weights} and {base.weights} have the same weights: there is nothing to extract")
    modules = sorted(_owners(others, before)) if whole else []
    targets = [name for name in targets if name not in modules]
    if not targets:
        hint = "" if whole else "; a LoRA holds matrices only"
        raise UserError(f"no linear layer differs by itself, only {shortened(others)}{hint}")
    with torch.no_grad():
        factors = {}
        for done, name in enumerate(targets, 1):
            factors[name] = _factor(_difference(after, before, name), rank)
            listener({"kind": "progress", "task": "layers", "done": done, "total": len(targets)})
        model = _with_adapter(before, after, factors, modules)
        total = sum(each.total for each in factors.values())
        rest = 0.0 if modules else sum(_square(after.get_parameter(n) - before.get_parameter(n)) for n in others)
    before.generation_config = after.generation_config
    write_adapter(model, output, base, tuned, config=None if same_rope(after.config, before.config) else after.config)
    used = max(len(each.squares) for each in factors.values())
    return Extracted(
        path=str(output),
        rank=used,
        layers=len(targets),
        kept={mark: _kept(factors, mark) for mark in _marks(used)},
        whole=modules,
        left_out=[] if modules else others,
        outside=rest / (rest + total),
    )


def _check_shapes(tuned: Place, base: Place) -> None:
    """Raise :class:`UserError` where the two are not of one architecture and size, before any weight is loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    configs = [AutoConfig.from_pretrained(place.config) for place in (tuned, base)]
    kinds = [config.model_type for config in configs]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"{tuned.weights} is a {kinds[0]} and {base.weights} a {kinds[1]}: their weights have no difference"
        )
    with torch.device("meta"):
        models = [AutoModelForCausalLM.from_config(config) for config in configs]
    first, second = ({name: tuple(p.shape) for name, p in model.named_parameters()} for model in models)
    for name in sorted({*first, *second}, key=lambda name: (name not in first, name)):
        if first.get(name) != second.get(name):
            found = [str(list(shapes[name])) if name in shapes else "absent" for shapes in (first, second)]
            raise UserError(
                f"the models differ in shape: {name} is {found[0]} in {tuned.weights}, {found[1]} in {base.weights}"
            )


def _changed(after: Any, before: Any) -> tuple[list[str], list[str]]:
    """Return the names of the linear layers whose matrix differs, and of all other weights that do."""
    import torch
    from transformers.pytorch_utils import Conv1D

    embedding = before.get_input_embeddings().weight
    changed = [name for name, p in before.named_parameters() if not torch.equal(p, after.get_parameter(name))]
    linear = {
        f"{name}.weight": name
        for name, module in before.named_modules()
        # a head that shares the embedding's weights cannot have an adapter of its own
        if isinstance(module, torch.nn.Linear | Conv1D) and module.weight is not embedding
    }
    return [linear[name] for name in changed if name in linear], [name for name in changed if name not in linear]


def _owners(weights: list[str], model: Any) -> set[str]:
    """Return the modules that hold *weights*, and the head where it shares one of them."""
    owners = {name.rpartition(".")[0] for name in weights}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    named = {id(module): name for name, module in model.named_modules()}
    if head is not None and head.weight is embedding.weight and named[id(embedding)] in owners:
        owners.add(named[id(head)])
    return owners


def _difference(after: Any, before: Any, name: str) -> Tensor:
    """Return what was added to a layer's matrix ``[out, in]``."""
    from transformers.pytorch_utils import Conv1D

    layer = before.get_submodule(name)
    found: Tensor = after.get_submodule(name).weight - layer.weight
    return found.T if isinstance(layer, Conv1D) else found


def _factor(matrix: Tensor, rank: int) -> _Factors:
    """Return the best approximation of *matrix* of at most *rank* (Eckart and Young 1936).

    Large matrices are decomposed in a random subspace (Halko et al., arXiv:0909.4061), small ones exactly.
    """
    import torch

    rank = min(rank, *matrix.shape)
    if rank + _SPARE < min(matrix.shape) // 4:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            up, values, right = torch.svd_lowrank(matrix, q=rank + _SPARE, niter=_ROUNDS)
        down = right.T
    else:
        up, values, down = torch.linalg.svd(matrix, full_matrices=False)
    values = values[:rank]
    roots = values.sqrt()
    return _Factors(
        down=(roots[:, None] * down[:rank]).contiguous(),
        up=(up[:, :rank] * roots).contiguous(),
        squares=values.double().square(),
        total=_square(matrix),
    )


def _square(matrix: Tensor) -> float:
    return float(matrix.detach().double().square().sum())


def _marks(rank: int) -> list[int]:
    """Return 1, 2, 4, … and *rank*."""
    return [*(2**power for power in range(rank.bit_length()) if 2**power < rank), rank]


def _kept(factors: dict[str, _Factors], rank: int) -> float:
    held = sum(float(each.squares[:rank].sum()) for each in factors.values())
    return min(1.0, held / sum(each.total for each in factors.values()))


def _with_adapter(base: Any, tuned: Any, factors: dict[str, _Factors], modules: list[str]) -> Any:
    """Return *base* with *factors* as its adapter, and *modules* as *tuned* has them."""
    import peft

    ranks = {name: len(each.squares) for name, each in factors.items()}
    rank = max(ranks.values())
    smaller = {name: own for name, own in ranks.items() if own < rank}  # small matrices have no more
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=list(factors),
        rank_pattern=dict(smaller),
        alpha_pattern=dict(smaller),
        modules_to_save=list(modules) or None,
    )
    with quiet_peft():
        model = peft.get_peft_model(base, config)
    for name, each in factors.items():
        layer = base.get_submodule(name)
        layer.lora_A["default"].weight.data = each.down
        layer.lora_B["default"].weight.data = each.up
    for name in modules:
        base.get_submodule(name).modules_to_save["default"].load_state_dict(tuned.get_submodule(name).state_dict())
    return model


def shortened(names: list[str]) -> str:
    """Return the first of many *names*, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
