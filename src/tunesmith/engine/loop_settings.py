"""How the training loop runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.engine.experience import Experience
    from tunesmith.engine.pack import Layout
    from tunesmith.engine.step_hooks import StepHooks


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How the loop runs; settled by the plan."""

    steps: int
    batch_size: int
    seed: int
    layout: Layout
    tokens_per_pass: int
    max_gradient_norm: float
    evaluate_every: int | None
    patience: int | None
    minimum_gain: float
    checkpoint_every: int
    keep_checkpoints: int
    method: StepHooks
    optimizer_in_backward: bool = False
    activation_offload: bool = False
    ema_decay: float = 0.0
    """Share that a moving average of the weights keeps in a step; 0 averages nothing."""
    experience: Experience | None = None
    """What makes examples of prompts, step by step; None where the data's examples are learnt as they are."""

    @property
    def judged_by_loss(self) -> bool:
        """Whether the loss over held-out examples decides which weights are best, and not what answers are worth."""
        return self.experience is None or not self.experience.judges
