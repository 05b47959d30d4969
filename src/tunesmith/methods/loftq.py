"""LoftQ: LoRA on 4-bit weights that begins with what quantization lost (arXiv:2310.08659)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from tunesmith.core.errors import Problem, UserError
from tunesmith.methods._lora import AbstractLoRA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from tunesmith.methods._base import Start

_KINDS = ("nf4", "fp4")
_DEVICES = ("cuda", "xpu")


class LoftQ(AbstractLoRA):
    """Train LoRA that first makes up for the error of 4-bit quantization; needs a base that bitsandbytes quantizes."""

    keeps_base: ClassVar[bool] = False
    makes_up_for_quantization: ClassVar[bool] = True
    cannot_continue: ClassVar[str] = "loftq only decides how lora begins: use method: lora"
    adapts_experts: ClassVar[bool] = False

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Refuse what no adapter can be put on, and weights that are not quantized."""
        yield from super().check(recipe)
        found = recipe.model.quantization
        if found is None:
            problem = "loftq makes up for what 4-bit quantization loses, but the model is not quantized by the recipe"
            yield Problem("method", problem, hint="set model.quantization: nf4, or use method: pissa")
        elif found.type_name() not in _KINDS:
            problem = f"loftq makes up for what nf4 and fp4 lose, and the base is kept in {found.type_name()}"
            yield Problem("method", problem, hint="set model.quantization: nf4, or use method: lora")

    def check_machine(self, device: str) -> Iterable[Problem]:
        """Refuse a CPU, on which peft does not compute what was lost."""
        if device not in _DEVICES:
            problem = f"peft computes loftq on a GPU only, and this machine has {device}"
            yield Problem("method", problem, hint="use method: lora")

    def check_handed_over(self) -> Iterable[Problem]:
        """Refuse it: beside the weights that a server has, the adapter does something else."""
        problem = "loftq's adapter makes up for what quantization lost here, and a server's base has not lost that"
        yield Problem("method", problem, hint="use method: lora, or leave stage.sampling.server out")

    def begin(self, model: nn.Module, start: Start) -> None:  # noqa: ARG002 - the data does not matter
        """Set each adapter to the best approximation of its layer's quantization error; raise where it cannot."""
        import torch
        from peft import replace_lora_weights_loftq

        wrapped, base = cast("Any", model), self.base_model(model)
        if not getattr(base, "is_loaded_in_4bit", False):
            raise UserError("method: loftq makes up for what 4-bit quantization loses, but the model is not quantized")
        if base.device.type not in _DEVICES:
            raise UserError(f"method: peft computes loftq on a GPU only, and the model is on {base.device.type}")
        place = base.config._name_or_path
        with torch.no_grad():
            # of a name on the Hub, peft looks up the files that were just loaded
            replace_lora_weights_loftq(wrapped, place if Path(place).is_dir() else None)
