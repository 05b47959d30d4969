"""What peft warns of where nothing is wrong, so that users read only what concerns them."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HARMLESS = (
    # set right for each layer by peft itself (GPT-2 stores its matrices transposed), which says so each time
    "fan_in_fan_out is set to",
    # EVA could look at larger batches without its adapters in memory; it is given one example at a time
    "lora with eva initialization",
    # LN tuning takes every norm there is, and says of each that it does not know it
    "Unsupported layer type",
    # BOFT tries its CUDA kernel, which a single butterfly factor does not need
    "Failed to load the CUDA extension",
    "Setting boft_n_butterfly_factor",
    # AdaLoRA may leave a module no rank at all
    ".*LoRA tensor.* have invalid shape",
    # patterns of AdaLoRA and of stacked experts name tensors, not modules; a recipe's own are checked by us
    "The following (rank|alpha)_pattern keys",
    # virtual tokens: positions are counted again with them in front
    "Position ids are not supported for parameter efficient tuning",
    # a vocabulary that grew is looked for where the base should be; a base that is itself an adapter has none there
    "Could not find a config file",
    # between transformers and peft
    "`is_gradient_checkpointing` is deprecated",
)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep peft's harmless warnings from being shown in here."""
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        yield
