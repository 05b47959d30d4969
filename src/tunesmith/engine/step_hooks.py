"""What a method does in a step beside the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class StepHooks(Protocol):
    """What the loop needs of a method: its part in a step beside the optimizer's.  *model* is the bare one."""

    def before_step(self, model: torch.nn.Module) -> None:
        """Add to the gradients, which are complete and clipped."""

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        """Change the weights after the optimizer did; *step* counts from 1."""

    def state(self, model: torch.nn.Module) -> dict[str, Any]:
        """Return what the next step depends on beside the trained weights, as tensors and plain values."""

    def restore(self, model: torch.nn.Module, state: dict[str, Any]) -> None:
        """Go back to a state."""
