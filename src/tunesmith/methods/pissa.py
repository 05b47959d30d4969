"""PiSSA: LoRA that begins with the principal singular directions of the weights (arXiv:2404.02948)."""

from typing import Annotated, Any

from pydantic import Field

from tunesmith.methods._residual import AbstractResidualLoRA


class PiSSA(AbstractResidualLoRA):
    """Train the weights' largest singular directions; converges faster than LoRA, saves twice its rank."""

    iterations: Annotated[int, Field(ge=0)] = 16
    """Rounds of the fast randomised decomposition; 0 for the exact one, which takes minutes a layer in large models."""

    def move(self, layer: Any) -> None:
        """Move the largest singular directions."""
        layer.pissa_init("default", f"pissa_niter_{self.iterations}" if self.iterations else "pissa")
