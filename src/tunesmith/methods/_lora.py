"""What the LoRA family shares: adapters of low rank beside frozen weights."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.core.errors import Problem, UserError
from tunesmith.methods._layers import ALL_LINEAR, AbstractLayers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel


class AbstractLoRA(AbstractLayers):
    """Train adapters of low rank; the base weights stay frozen."""

    peft_config: ClassVar[str] = "LoraConfig"

    adapts_experts: ClassVar[bool] = True
    """Whether ``all-linear`` includes experts whose matrices are stacked in one tensor."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapters: capacity and memory grow with it. 8 for a style, 64 for new knowledge."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the update; the factor in front of it is ``alpha / rank``."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs set to zero while training; 0.05 helps on small data."""

    trained_tokens: list[Annotated[int, Field(ge=0)]] = []
    """Ids of tokens whose rows of embedding and output head train too; ``model.new_tokens`` adds its own."""

    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Other ranks by regular expression over ends of module names: ``{down_proj: 32}``."""

    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Other scales by regular expression over ends of module names."""

    def options(self) -> dict[str, Any]:
        """Return the settings as peft calls them."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            **self.variant(),
        }

    def variant(self) -> dict[str, Any]:
        """Return what a variant changes in peft's LoraConfig."""
        return {}

    def check_handed_over(self) -> Iterable[Problem]:
        """Refuse what vLLM does not read of an adapter: ranks and scales of single modules, and whole matrices."""
        for name in ("rank_pattern", "alpha_pattern", "trained_tokens", "modules_to_save"):
            if getattr(self, name):
                problem = "servers take adapters of one rank and scale, and no whole matrices"
                yield Problem(f"method.{name}", problem, hint="leave it or stage.sampling.server out")

    def choose(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the modules to adapt; raise :class:`UserError` for more rank than the largest matrix has."""
        chosen = super().choose(model)
        modules = dict(model.named_modules())
        weights = [getattr(modules[name], "weight", None) for name in chosen["target_modules"]]
        sides = [min(w.shape) for w in weights if w is not None and w.ndim == 2 and w.is_floating_point()]
        if sides and self.rank > max(sides):
            raise UserError(f"method.rank: {self.rank} is more than any matrix of this model has ({max(sides)})")
        for setting, patterns in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for pattern in patterns:
                if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in chosen["target_modules"]):
                    raise UserError(f"method.{setting}: {pattern!r} fits the end of no adapted module's name")
        chosen["trainable_token_indices"] = self._token_rows(model)
        # a copy each: peft writes into them
        chosen |= {"rank_pattern": dict(self.rank_pattern), "alpha_pattern": dict(self.alpha_pattern)}
        stacked = self._stacked_experts(model) if self.adapts_experts and self.targets == ALL_LINEAR else []
        if stacked:
            chosen["target_parameters"] = stacked
            # two matrices of each expert stand in one tensor, and get the rank of two, as peft has it
            both = [name.rpartition(".")[2] for name in stacked if name.endswith("gate_up_proj")]
            chosen["rank_pattern"] |= {rf".*\.{name}": 2 * self.rank for name in both}
            chosen["alpha_pattern"] |= {rf".*\.{name}": 2 * self.alpha for name in both}
        return chosen

    def _token_rows(self, model: PreTrainedModel) -> dict[str, list[int]] | None:
        """Return the rows that train by the name of their matrix: the embedding, and the output head if it is apart."""
        if not self.trained_tokens:
            return None
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        tables = [embedding]
        if head is not None and head.weight is not embedding.weight:
            if getattr(head, "bias", None) is not None:
                raise UserError(
                    "method.trained_tokens: peft leaves out the bias of this model's output head where single rows of "
                    "it train; name embedding and head in method.modules_to_save instead"
                )
            tables.append(head)
        names = {id(module): name for name, module in model.named_modules()}
        return {names[id(table)]: list(self.trained_tokens) for table in tables}

    def _stacked_experts(self, model: PreTrainedModel) -> list[str]:
        """Return the ends of the names of tensors that hold the matrices of all experts ``[experts, ., .]``."""
        if self.exclude or self.layers:
            return []  # peft finds tensors by the ends of their names, in every block
        names = (name for name, p in model.named_parameters() if p.ndim == 3 and ".experts." in name)
        return sorted({f"experts.{name.rpartition('.experts.')[2]}" for name in names})
