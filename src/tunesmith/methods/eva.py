"""EVA: LoRA whose A begins with the principal directions of what the layers see in the data (arXiv:2410.07170)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field

from tunesmith.core.errors import UserError
from tunesmith.methods._lora import AbstractLoRA

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunesmith.methods._base import Start


class EVA(AbstractLoRA):
    """Train LoRA from a start that fits the data; every layer keeps the same rank, so that sizes are known before."""

    adapts_experts: ClassVar[bool] = False
    cannot_continue: ClassVar[str] = "eva only decides how lora begins: use method: lora"

    samples: Annotated[int, Field(ge=1)] = 64
    """Training examples, from the first, that are looked at, again and again until the directions hold still."""

    def variant(self) -> dict[str, Any]:
        """Return the zero start of B; A is set when the data can be seen."""
        from peft import EvaConfig

        # rho > 1 would move rank between layers
        return {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)}

    def begin(self, model: nn.Module, start: Start) -> None:
        """Set A of every layer; raise :class:`UserError` where no sample has as many tokens as the adapters rank."""
        import torch
        from peft import initialize_lora_eva_weights

        # peft leaves samples out that are shorter than the rank, and would look for longer ones for ever
        lengths = [start.length(index) for index in range(min(self.samples, start.examples))]
        long = [index for index, length in enumerate(lengths) if length > self.rank]
        if not long:
            raise UserError(
                f"method.rank: eva needs examples of more tokens than the rank, {self.rank}; the first {len(lengths)} "
                f"have at most {max(lengths)}. Lower it, or raise method.samples"
            )

        def inputs(layer_input: Any, model_input: Any, name: str) -> Tensor:  # noqa: ARG001 - peft's three
            found: Tensor = layer_input[0] if isinstance(layer_input, tuple | list) else layer_input
            return found.reshape(-1, found.shape[-1]).float()

        initialize_lora_eva_weights(
            cast("Any", model),
            [torch.tensor(index) for index in long],
            forward_fn=lambda model, index: start.run_example(int(index)),  # noqa: ARG005 - peft's two
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=inputs,
            gather_distributed_inputs=False,  # every process looks at the same samples
            show_progress_bar=False,
        )
