"""What methods share that adapt some of a model's layers: how those are chosen."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import suggest
from tunesmith.methods._peft import AbstractPeft
from tunesmith.methods._whole import text_part, transformer_blocks
from tunesmith.models.heads import head_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
READS_WEIGHTS = "it reads the numbers of each weight, and packed bits are none"
"""Why a method needs plain weights whose adapter is made of the weights it stands beside."""


class AbstractLayers(AbstractPeft):
    """Train adapters in chosen layers."""

    all_of_them: ClassVar[str] = ALL_LINEAR
    """The word for :meth:`usual_targets`."""

    targets: str | list[str] = ALL_LINEAR
    """``all-linear`` (all that text trains, but output head and routers), names of modules, or a regular expression."""

    exclude: str | list[str] = []
    """Modules that are left out all the same: names, or one regular expression."""

    layers: list[int] = []
    """Numbers of the transformer blocks to adapt, from 0; all of them where empty."""

    modules_to_save: list[str] = []
    """Modules trained whole and saved beside the adapter, such as ``embed_tokens`` for new tokens."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse what no adapter can be put on, and patterns that are none."""
        yield from super().check(recipe)
        for setting, value in (("targets", self.targets), ("exclude", self.exclude)):
            try:
                re.compile(value if isinstance(value, str) else "")
            except re.error as error:
                yield Problem(f"method.{setting}", f"{value!r} is not a regular expression: {error}")

    def choose(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the names of the modules to adapt; raise :class:`UserError` for a setting that fits none."""
        return {"target_modules": self.find_targets(model), "modules_to_save": self.modules_to_save or None}

    def find_targets(self, model: PreTrainedModel) -> list[str]:
        """Return the full names of the modules that the settings choose."""
        names = [name for name, _ in model.named_modules() if name]
        found = (
            self.usual_targets(model)
            if self.targets == self.all_of_them
            else matching_names("targets", self.targets, names)
        )
        if self.exclude:
            left_out = set(matching_names("exclude", self.exclude, names))
            found = [name for name in found if name not in left_out]
        if self.layers:
            found = [name for name in found if any(name.startswith(start) for start in self._chosen_blocks(model))]
        if not found:
            raise UserError("method.targets: exclude and layers leave nothing to adapt")
        return found

    def check_adapter(self, model: PreTrainedModel, config: Any) -> None:
        """Refuse other modules than the adapter has, too."""
        from peft.tuners.tuners_utils import check_target_module_exists

        super().check_adapter(model, config)
        usual = type(self)()
        if (self.targets, self.exclude, self.layers) == (usual.targets, usual.exclude, usual.layers):
            return
        asked = set(self.find_targets(model))
        has = {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}
        if asked != has:
            differs = sorted(asked ^ has)
            side = "has none" if differs[0] in asked else "has one"
            raise UserError(f"method.targets: the adapter {side} for {differs[0]}; leave targets, exclude, layers out")

    def usual_targets(self, model: PreTrainedModel) -> list[str]:
        """Return the modules that are adapted where the recipe names none."""
        return linear_layers(model)

    def _chosen_blocks(self, model: PreTrainedModel) -> list[str]:
        blocks = transformer_blocks(model)
        wrong = [number for number in self.layers if not 0 <= number < len(blocks)]
        if wrong:
            raise UserError(f"method.layers: no block {wrong[0]}; the model has {len(blocks)}, numbered from 0")
        chosen = {id(blocks[number]) for number in self.layers}
        return [f"{name}." for name, module in model.named_modules() if id(module) in chosen]


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of every linear layer that text can train, but the output head and what chooses.

    What chooses between experts, or which tokens are seen, is left alone, and what no text goes through: towers for
    images and sound, attention to an encoder that is not there, and what reads only the matrix of a layer.
    """
    head, reads = model.get_output_embeddings(), head_name(model)
    left_out = {*([reads] if reads else []), *_routers(model), *_read_as_matrices(model), *_tied(model)}
    reads_text = text_part(model)
    return [
        name
        for name, module in model.named_modules()
        if _is_linear(module)
        and module is not head
        and name not in left_out
        and reads_text(name)
        and not _ASIDE.intersection(name.split("."))
    ]


# what chooses tokens (sparse attention), looks at an encoder's states, sums a text up in one vector, fits in an image
_ASIDE = frozenset({"indexer", "encoder_attn", "crossattention", "cross_attn", "pooler", "visual_projection"})


def _tied(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of linear layers that share their matrix: what adapters add to one could not be merged.

    With another layer (Zamba), or with the embedding, where the model does not call it its output head (CPM-Ant).
    """
    found = [(name, getattr(module, "weight", None)) for name, module in model.named_modules() if _is_linear(module)]
    embedding: Any = model.get_input_embeddings()
    counts = Counter([id(embedding.weight), *(id(weight) for _, weight in found)])
    # quantized layers may call theirs something else
    yield from (name for name, weight in found if weight is not None and counts[id(weight)] > 1)


def _read_as_matrices(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of linear layers whose matrix Mamba's fused kernels take, past any adapter on them."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if "A_log" in own and "D" in own:
            yield from (f"{name}.{child}" for child in ("out_proj", "x_proj", "dt_proj"))


def _is_linear(module: nn.Module) -> bool:
    """Say whether *module* multiplies with one matrix: torch's, GPT-2's transposed, or a quantized one."""
    from torch import nn

    kind = type(module).__name__
    if "n_groups" in vars(module):  # a matrix for each part of its input (DeepSeek V4), which no adapter is made for
        return False
    return (
        isinstance(module, nn.Linear) or kind == "Conv1D" or (kind.endswith("Linear") and "in_features" in vars(module))
    )


def _routers(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of linear layers that choose between experts: training them moves tokens to other experts.

    They stand beside the experts in their block, themselves or in a module that is called a router; ``gate_proj`` of
    an expert, or of one that all tokens share, stands inside that.
    """
    for name, module in model.named_modules():
        children = dict(module.named_children())
        if "experts" not in children:
            continue
        for child, inner in children.items():
            if _is_linear(inner):
                yield f"{name}.{child}"
            elif child in ("gate", "router"):
                yield from (f"{name}.{child}.{below}" for below, layer in inner.named_modules() if _is_linear(layer))


def matching_names(setting: str, wanted: str | list[str], names: list[str]) -> list[str]:
    """Return the *names* that *wanted* chooses: as peft reads it, ends of names, or a pattern of the whole name."""
    last = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
    if isinstance(wanted, str):
        found = [name for name in names if re.fullmatch(wanted, name)]
        if not found:
            ends = f"; a list, [{wanted}], chooses by the ends of names" if any(_ends(n, wanted) for n in names) else ""
            raise UserError(
                f"method.{setting}: {wanted!r} is a pattern that must match the whole name of a module, such as "
                f"{max(names, key=len)}, and matches none{ends}; names end in {', '.join(last)}"
            )
        return found
    for each in wanted:
        if not any(_ends(name, each) for name in names):
            raise UserError(
                f"method.{setting}: no module is called {each!r}{suggest(each, last)}; have {', '.join(last)}"
            )
    return [name for name in names if any(_ends(name, each) for each in wanted)]


def _ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")
