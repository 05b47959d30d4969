"""A recipe's model without weights: built on the meta device, the recipe's method applied to it.

That counts what trains exactly, and finds targets and ranks that do not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.models.heads import put_head
from tunesmith.run.continuing import apply_method
from tunesmith.run.sampled import keeps_start

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.plan import Plan


class NoEstimateError(Exception):
    """The cost cannot be said beforehand; the message says why."""


@dataclass(frozen=True)
class Check:
    """What the checks before the first step hold beyond the weights, in bytes."""

    attention: int
    """While a backend's gradients are compared with the reference's."""
    gradients: int
    """While every weight's gradient is computed, looked at, and let go."""
    twice: bool
    """Whether they are computed by our own layers too, and compared."""


class Outline:
    """A recipe's model without weights, the method applied: what counting and tracing need."""

    def __init__(self, recipe: Recipe, config: PreTrainedConfig) -> None:
        """Build it; raise :class:`UserError` where the method does not fit the model.

        Raises :class:`NoEstimateError` where that cannot be known without weights.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from tunesmith.engine.packed_linear import pack_linears

        self.recipe, self.config = recipe, config
        try:
            with torch.device("meta"):
                base: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=recipe.model.trust_remote_code)
        except (ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"model: transformers cannot build {config.model_type} as a language model: {reason}"
            ) from None
        base.config.use_cache = False
        self.untouched = sum(p.numel() for p in base.parameters())
        self.packed = pack_linears(base, recipe.model)
        if recipe.stage.head is not None:
            base = put_head(base, recipe.stage.head)
        state = torch.get_rng_state()
        try:
            with torch.device("meta"):
                self.model: Any = apply_method(recipe, base)
        except (RuntimeError, NotImplementedError) as error:
            raise NoEstimateError(f"{recipe.method.type_name()} needs the weights themselves: {error}") from error
        finally:
            torch.set_rng_state(state)
        self.base: Any = recipe.method.base_model(self.model)
        self.tracer: Any = None
        """What traces passes, once its weights have been replaced by phantoms."""
        self.check: Check | None = None
        """What the checks were seen to take: the same for every budget of tokens."""
        self.sampling: dict[str, dict[str, int]] | None = None
        """What writing answers was seen to take, by moment: the same for every budget, too."""
        self.traces: dict[Any, Any] = {}
        """What passes were seen to take, by pack and settings …"""
        self.passes: dict[Any, Any] = {}
        """… and which passes the one set of data gives that this is asked about, by what the plan says of them."""

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Parameters in all, and those that train."""
        weights = list(self.model.parameters())
        return sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.requires_grad)

    @cached_property
    def packed_share(self) -> tuple[float, float]:
        """The share of the base's weights that are quantized, and the bits that each of those takes."""
        from tunesmith.engine.packed_linear import PackedLinear

        layers = [m for m in self.base.modules() if isinstance(m, PackedLinear)]
        count = sum(m.weight.numel() for m in layers)
        bits = 8 * sum(m.weight.numel() * m.bytes_per_weight for m in layers) / max(1, count)
        return count / max(1, self.untouched), bits

    @cached_property
    def teacher_weights(self) -> int:
        """Parameters of a model that stays beside the one that trains."""
        name = self.recipe.stage.teacher_model()
        return 0 if name is None else _count_weights(name)

    @cached_property
    def reference_weights(self) -> int:
        """Parameters of a model that is asked once, before the first step; none where it is the one that trains."""
        name = self.recipe.stage.reference_model()
        return 0 if name in (None, "start", "base") else _count_weights(str(name))

    @cached_property
    def judge_weights(self) -> int:
        """Parameters of models that say what answers are worth."""
        names = [score.judge_model() for score in self.recipe.stage.reward_scores]
        return sum(_count_weights(name, "AutoModel") for name in names if name is not None)

    def weight_types(self, plan: Plan) -> Any:
        """Return a function from a parameter to the type its numbers are kept in, as ``train`` makes them."""
        import torch

        trained = getattr(torch, self.recipe.engine.weights)
        frozen = getattr(torch, plan.precision) if self.recipe.method.adds_adapter else trained
        return lambda parameter: trained if parameter.requires_grad else frozen

    def static(self, plan: Plan) -> dict[str, int]:
        """Return the bytes of weights and optimizer that are there all the time."""
        import torch

        dtype_of = self.weight_types(plan)
        frozen = trained = 0
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                size = _bytes_of(module, name, parameter.numel(), dtype_of(parameter).itemsize)
                trained, frozen = (trained + size, frozen) if parameter.requires_grad else (trained, frozen + size)
        # modules that share a weight (tied embeddings) share its memory
        shared = _tied_bytes(self.model, dtype_of)
        frozen, trained = frozen - shared[0], trained - shared[1]
        teacher = self.teacher_weights * getattr(torch, plan.precision).itemsize
        # as run/head_evaluation.py loads it
        judges = self.judge_weights * (2 if plan.device == "cuda" else 4)
        shapes = [tuple(p.shape) for p in self.model.parameters() if p.requires_grad]
        return {
            **({"teacher": teacher} if teacher else {}),
            **({"reward model": judges} if judges else {}),
            "weights, frozen": frozen,
            "weights that train": trained,
            **({"start weights": trained} if keeps_start(self.recipe) else {}),
            "optimizer": round(plan.recipe.optimizer.state_bytes(shapes)),
        }


def _count_weights(name: str, kind: str = "AutoModelForCausalLM") -> int:
    """Return how many parameters the run, folder or Hub name *name* has; of an adapter, its base."""
    import torch
    import transformers

    from tunesmith.models.load import find_model

    config = transformers.AutoConfig.from_pretrained(find_model(name, weights=False).base)
    with torch.device("meta"):
        model = getattr(transformers, kind).from_config(config)
    return sum(p.numel() for p in model.parameters())


def _bytes_of(module: Any, name: str, count: int, size: int) -> int:
    """Return the bytes that *count* numbers of *size* bytes take as *name* of *module*; packed weights take less."""
    from tunesmith.engine.packed_linear import PackedLinear

    packed = isinstance(module, PackedLinear) and name == "weight"
    return round(count * module.bytes_per_weight) if packed else count * size


def _tied_bytes(model: Any, dtype_of: Any) -> tuple[int, int]:
    """Return the bytes of weights that stand in several modules, counted beyond once: frozen, trained."""
    seen: set[int] = set()
    twice = [0, 0]
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                twice[int(parameter.requires_grad)] += parameter.numel() * dtype_of(parameter).itemsize
            seen.add(id(parameter))
    return twice[0], twice[1]
