"""DoRA: weights split into magnitude and direction; LoRA turns the direction (arXiv:2402.09353)."""

from collections.abc import Iterable
from typing import Any, ClassVar

from tunesmith.core.errors import Problem
from tunesmith.methods._lora import AbstractLoRA


class DoRA(AbstractLoRA):
    """Train the direction of the weights with LoRA and their magnitude as a vector: nearer to full training, slower."""

    adapts_experts: ClassVar[bool] = False
    refused_quantizations: ClassVar[dict[str, str]] = {"int8": "peft cannot take the norms of the weights"}

    def variant(self) -> dict[str, Any]:
        """Return the switch."""
        return {"use_dora": True}

    def check_handed_over(self) -> Iterable[Problem]:
        """Refuse it: vLLM has no DoRA, and our server takes plain LoRA."""
        hint = "use method: lora, or leave stage.sampling.server out"
        yield Problem("method", "servers that load adapters have no code for the magnitudes of dora", hint=hint)
