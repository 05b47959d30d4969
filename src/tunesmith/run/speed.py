"""How long a run will take, from figures: a card's, or one timed product, and a share of them that is assumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.run.cards import Card
    from tunesmith.run.estimate import Estimate
    from tunesmith.run.machine import Machine
    from tunesmith.run.outline import Outline
    from tunesmith.run.plan import Plan
    from tunesmith.run.prepared import Prepared

# share of the best product rate that training reaches: our judgement, near that of the better trainers
_ASSUMED_SHARE = {"cuda": 0.4, "mps": 0.3, "cpu": 0.5}
# a step is more than its products, and a machine has other work: how far off a guess can be
GUESS = 2.0


@dataclass(frozen=True)
class Job:
    """A run whose time is asked for."""

    machine: Machine
    plan: Plan
    outline: Outline
    prepared: Prepared
    cost: Estimate


@dataclass(frozen=True)
class Speed:
    """How long a run's steps take."""

    step: float
    """Seconds of an optimizer step."""
    factor: float
    """How many times longer or shorter the run may take."""
    why: str
    beside: float = 0.0
    """Seconds that evaluations and checkpoints take, all together."""

    def seconds(self, steps: int) -> float:
        """Return how long *steps* optimizer steps take, and what is done between them."""
        return self.step * steps + self.beside


SpeedOf = Callable[[Job], Speed]


def assumed_speed(card: Card, job: Job) -> Speed:
    """Return what a card's stated rate comes to."""
    share = _ASSUMED_SHARE[card.device]
    why = f"{share:.0%} (assumed) of {card.teraflops:g} TFLOP/s [{card.source}]"
    return Speed(_operations(job) / (card.teraflops * 1e12 * share), GUESS, why)


def quick_speed(job: Job) -> Speed:
    """Return what one matrix product, timed for a tenth of a second here, comes to."""
    device = job.machine.device
    rate, share = product_rate(device, job.plan.precision, 0.1), _ASSUMED_SHARE[device]
    why = f"{share:.0%} (assumed) of {rate / 1e12:.2g} TFLOP/s, timed on one product"
    return Speed(_operations(job) / (rate * share), GUESS, why)


def _operations(job: Job) -> float:
    assert job.cost.work is not None, "only what was traced is timed"
    return job.cost.work.operations


@lru_cache  # a machine's speed does not change, and one recipe has one plan
def product_rate(device: str, precision: str, seconds: float) -> float:
    """Return the operations a second of a large product on *device*, the best within so many *seconds*."""
    import torch

    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        left @ right
        wait(device)
        best = min(best, time.perf_counter() - began)
    return float(2 * size**3 / best)


def wait(device: str) -> None:
    """Wait until *device* has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
