"""How long a run will take: from a card's figures and a share of them that is assumed, or from a short measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.run.cards import Card
    from tunesmith.run.estimate import Work
    from tunesmith.run.machine import Machine
    from tunesmith.run.outline import Outline
    from tunesmith.run.plan import Plan

# share of the best product rate that training reaches: our judgement, near that of the better trainers
_ASSUMED_SHARE = {"cuda": 0.4, "mps": 0.3, "cpu": 0.5}
# a step is more than its products, and a machine has other work: how far off a guess or a measurement can be
GUESS, MEASURED = 2.0, 1.3
_PROBE_SECONDS = 1.0
_PROBE_TOKENS = 512


@dataclass(frozen=True)
class Speed:
    """Operations a second that a run's steps will reach."""

    rate: float
    factor: float
    """How many times longer or shorter the run may take."""
    why: str

    def seconds(self, work: Work, steps: int) -> float:
        """Return how long *steps* optimizer steps take."""
        return work.operations * steps / self.rate


def assumed_speed(card: Card) -> Speed:
    """Return what a card's stated rate comes to."""
    share = _ASSUMED_SHARE[card.device]
    return Speed(
        card.teraflops * 1e12 * share,
        GUESS,
        f"{share:.0%} (assumed) of {card.teraflops:g} TFLOP/s [{card.source}]",
    )


def quick_speed(machine: Machine, plan: Plan) -> Speed:
    """Return what one matrix product, timed for a tenth of a second here, comes to."""
    rate, share = _product_rate(machine.device, plan.precision, 0.1), _ASSUMED_SHARE[machine.device]
    return Speed(rate * share, GUESS, f"{share:.0%} (assumed) of {rate / 1e12:.2g} TFLOP/s, timed on one product")


def probe_speed(machine: Machine, plan: Plan, outline: Outline) -> Speed:
    """Time one block of the model, forward and backward, for about a second."""
    rate = _product_rate(machine.device, plan.precision, 0.3)
    block = _block_rate(outline, plan, machine.device)
    return Speed(block, MEASURED, f"one block reaches {block / rate:.0%} of this machine's {rate / 1e12:.2g} TFLOP/s")


@lru_cache  # a machine's speed does not change, and one recipe has one plan
def _product_rate(device: str, precision: str, seconds: float) -> float:
    import torch

    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return float(2 * size**3 / best)


def _block_rate(outline: Outline, plan: Plan, device: str) -> float:
    """Return the operations a second of a model like *outline*'s with one block and few words."""
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(outline.config)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size = 1, 1024
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, None)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    precision = getattr(torch, plan.precision)
    base: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=plan.recipe.model.trust_remote_code)
    kept = precision if plan.recipe.method.adds_adapter else torch.float32
    base.to(kept)
    if plan.recipe.method.adds_adapter:
        base.requires_grad_(False)  # the gradient by its input is half of what a trained block costs, as with adapters
    model = base.base_model.to(device)
    tokens = torch.randint(0, 1024, (1, min(_PROBE_TOKENS, plan.tokens_per_pass)), device=device)
    embedded = base.get_input_embeddings()(tokens).detach().requires_grad_()
    enabled = plan.precision != "float32"

    def run() -> None:
        with torch.autocast(device, dtype=precision if enabled else None, enabled=enabled):
            out = model(inputs_embeds=embedded, use_cache=False)[0]
        out.float().sum().backward()
        _wait(device)

    with FlopCounterMode(display=False) as counter:
        run()
    best, end = float("inf"), time.perf_counter() + _PROBE_SECONDS
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return float(counter.get_total_flops() / best)


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
