"""The learning rate of every step: transformers' schedulers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    import torch


def make_schedule(
    optimizer: torch.optim.Optimizer, name: str, steps: int, warmup: float, arguments: dict[str, Any]
) -> Any:
    """Return transformers' scheduler *name* over *steps* steps; *warmup* below 1 is a share of them."""
    from transformers import get_scheduler

    # rounded down, so that a run of a few steps does not spend them at a rate near 0 (the first rate of a rise is 0)
    rising = math.floor(warmup * steps + 1e-9) if warmup < 1 else int(warmup)
    options = dict(arguments)
    if name == "warmup_stable_decay":
        options.setdefault("num_decay_steps", max(1, steps // 10))
    if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and not {"min_lr", "min_lr_rate"} & set(options):
        options["min_lr_rate"] = 0.1
    try:
        scheduler: Any = get_scheduler(
            name if name != "constant" or not rising else "constant_with_warmup", optimizer, rising, steps, options
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"schedule.decay_arguments: {name} does not take them: {error}") from None
    return scheduler
