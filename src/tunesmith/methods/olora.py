"""OLoRA: LoRA that begins with orthonormal factors, the QR decomposition of the weights (arXiv:2406.01775)."""

from typing import Any

from tunesmith.methods._residual import AbstractResidualLoRA


class OLoRA(AbstractResidualLoRA):
    """Train low-rank adapters that begin orthonormal; saves twice its rank."""

    def move(self, layer: Any) -> None:
        """Move the first columns of Q and rows of R."""
        layer.olora_init("default")
