"""The facts about this machine that a plan depends on; tests invent them."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run would happen."""

    device: str = "cpu"
    name: str = "CPU"
    devices: int = 1
    bfloat16: bool = False
    memory_bytes: int = 0
    cores: int = 1
    processes: int = 1
    has_torch: bool = True

    @classmethod
    def probe(cls, wanted: str = "auto", processes: int = 1) -> Machine:
        """Look at this machine; without torch, as a machine that can plan but not train."""
        cores = os.cpu_count() or 1
        if importlib.util.find_spec("torch") is None:
            return cls(
                name=platform.processor() or platform.machine(), cores=cores, processes=processes, has_torch=False
            )
        import torch

        if wanted in ("auto", "cuda") and torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            return cls(
                device="cuda",
                name=properties.name,
                devices=torch.cuda.device_count(),
                bfloat16=torch.cuda.is_bf16_supported(),
                memory_bytes=properties.total_memory,
                cores=cores,
                processes=processes,
            )
        device = "mps" if wanted in ("auto", "mps") and torch.backends.mps.is_available() else "cpu"
        return cls(
            device=device,
            name=_processor(),
            bfloat16=device == "cpu" and _cpu_multiplies_bfloat16(),
            memory_bytes=_memory(),
            cores=cores,
            processes=processes,
        )


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_multiplies_bfloat16() -> bool:
    """Say whether the processor has instructions for bfloat16; elsewhere it is emulated, and slower than float32."""
    import torch

    # torch offers no public name for this before 2.13
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is None:
        return bool(torch.cpu._is_avx512_bf16_supported())
    found = ask()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - not a file of ours
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int:
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
