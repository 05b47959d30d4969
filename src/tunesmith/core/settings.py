"""The only reader of the environment: what the process was told from outside, once, typed."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessSettings:
    """Where this process stands among those that a launcher (torchrun) started."""

    rank: int
    world_size: int
    local_rank: int


def process_settings() -> ProcessSettings:
    """Return this process's place; a process without a launcher is alone."""
    get = os.environ.get
    return ProcessSettings(int(get("RANK", "0")), int(get("WORLD_SIZE", "1")), int(get("LOCAL_RANK", "0")))


def use_offline_hub() -> None:
    """Keep Hugging Face libraries from asking the network; call before they are imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def quiet_libraries() -> None:
    """Keep libraries from forking warnings and progress bars into our output; call before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
