"""Memory: what each lever on it costs and frees, as numbers for plans; and how to give back what was freed.

Measured on two CPU cores with bfloat16 arithmetic and float32 weights that train: a Qwen3 shape of 6 blocks, hidden
size 512, one pass of 1,024 tokens in sequences of 128, medians of 5 runs that took turns.  Bytes are those that malloc
counts.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lever:
    """A setting of the recipe's ``engine`` block that trades time for memory."""

    setting: str
    value: str | bool
    time: float
    """Factor of a step's time."""
    activations: float = 1.0
    """Factor of what a pass keeps for its backward pass, apart from the loss."""
    weights: float = 1.0
    """Factor of the bytes of weights that train ."""
    gradients: float = 1.0
    """Factor of the bytes of gradients, where a step is one pass."""
    note: str = ""


LEVERS = (
    Lever(
        setting="gradient_checkpointing",
        value=True,
        time=1.35,
        activations=0.08,
        note="1.33 full, 1.40 LoRA; kept: 22 of 253 MB, 10 of 155, 13 of 88 in our own forward pass",
    ),
    Lever(
        setting="gradient_checkpointing",
        value="selective",
        time=1.3,
        activations=0.5,
        note="1.26 full, 1.34 LoRA; kept: 98 of 253 MB, 88 of 155. Our own forward pass keeps no more without it: 1.02",
    ),
    Lever(
        setting="optimizer_in_backward",
        value=True,
        time=1.02,
        gradients=0.0,
        note="0.97 to 1.06; 80 MB of gradients became those of one weight at a time",
    ),
    Lever(
        setting="weights",
        value="bfloat16",
        time=1.02,
        activations=0.72,
        weights=0.5,
        gradients=0.5,
        note="1.00 to 1.06; the optimizer's state stays float32; kept: 181 of 253 MB, as no weight is cast",
    ),
)
"""Their prices; ``activation_offload`` has none: its transfers have not been measured on a GPU."""


def return_freed_memory() -> None:
    """Give the system what the C library keeps of freed memory; does nothing where that is not glibc.

    The CPU's library keeps a kernel for each new shape of a product.  Those lie in the heap between the blocks of
    tensors, so that what is freed around them stays resident (100 to 500 MiB after a hundred shapes in bfloat16).
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
