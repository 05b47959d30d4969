"""The only reader of the environment: what the process was told from outside, once, typed."""

import logging
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.errors import UserError

KEY_VARIABLE = "TUNESMITH_API_KEY"
"""The environment variable that holds the key of an address, unless another is named."""

KEPT_KERNELS = 64
"""Kernels of matrix products that a process keeps on the CPU, in each of two caches; a pass has some twenty."""


@dataclass(frozen=True)
class ProcessSettings:
    """Where this process stands among those that a launcher (torchrun) started."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    """Processes on this machine."""


def process_settings() -> ProcessSettings:
    """Return this process's place; a process without a launcher is alone."""
    get = os.environ.get
    return ProcessSettings(
        int(get("RANK", "0")),
        int(get("WORLD_SIZE", "1")),
        int(get("LOCAL_RANK", "0")),
        int(get("LOCAL_WORLD_SIZE", "1")),
    )


def cache_folder() -> Path:
    """Return the folder for what can be made again: ``TUNESMITH_CACHE``, else the user's usual one.

    Raises ``RuntimeError`` where that lies in a home folder and the user has none.
    """
    get = os.environ.get
    if chosen := get("TUNESMITH_CACHE"):
        return Path(chosen).expanduser()
    return Path(get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tunesmith"


def config_folder() -> Path:
    """Return the folder for what the user keeps: ``XDG_CONFIG_HOME``, else ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "tunesmith"


def model_hub() -> str:
    """Return where models are downloaded from: ``TUNESMITH_HUB``, else the Hugging Face Hub.

    Raises :class:`UserError` for a hub that there is not.
    """
    chosen = os.environ.get("TUNESMITH_HUB") or "huggingface"
    if chosen not in ("huggingface", "modelscope"):
        raise UserError(f"TUNESMITH_HUB: there is no hub {chosen!r}; there are huggingface and modelscope")
    return chosen


def api_key(variable: str = KEY_VARIABLE) -> str | None:
    """Return the key that addresses of models are asked with, that *variable* holds; None where there is none."""
    return os.environ.get(variable) or None


def cpp_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call (``CXX``, else g++); None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


def compiled_code_folder() -> Path:
    """Return where torch.compile keeps its code between runs: ``TORCHINDUCTOR_CACHE_DIR``, else in our cache folder."""
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_folder() / "compiled")


def keep_compiled_code() -> None:
    """Let torch.compile keep its code between runs in :func:`compiled_code_folder`."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled_code_folder())


def prepare_process() -> None:
    """Keep libraries from writing into our output, and threads from fighting; call before torch is imported."""
    # OpenMP threads that wait by spinning take the core from the thread they wait for: beside two busy programs on a
    # two-core machine a training step took fifty times as long (measured); asleep after a short spin, three times
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # the CPU's library and torch each keep 1,024 kernels, half a MiB for every shape of a bfloat16 product; passes
    # differ in length, so few are asked for again: with 64, memory grew a quarter as much at the same speed (measured)
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KEPT_KERNELS))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def prepare_worker() -> None:
    """Keep a process that is one of as many as there are cores to one core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
