"""The peers, their settings, and the virtual environment each runs in."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".bench"
# Taken from a local file where there is one, and first: any other release pulls gigabytes of CUDA packages.
TORCH = "torch==2.13.0"

_FROZEN_SHORT = {"lora": "bfloat16", "full": "float32"}
"""Weights that train stay in float32, as ours do; frozen ones may be short."""
_BF16 = {"bf16": True, "per_device_train_batch_size": 32}


@dataclass(frozen=True)
class Environment:
    """A virtual environment: what pip installs, call by call, and what must be done afterwards."""

    name: str
    installs: tuple[tuple[str, ...], ...]
    finish: Callable[[Path], None] = lambda _: None
    """Called with the folder ``site-packages``."""

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return HOME / self.name / "bin" / "python"

    def build(self) -> None:
        """Build the environment, unless it is there; a half-built one is built anew."""
        folder, ready = HOME / self.name, HOME / self.name / ".ready"
        wanted = repr((TORCH, self.installs))
        if ready.exists() and ready.read_text("utf-8") == wanted:
            return
        print(f"building {folder} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for packages in ((TORCH,), *self.installs):
            pip = [str(self.python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            subprocess.run([*pip, *packages], check=True, cwd=ROOT)
        self.finish(next((folder / "lib").glob("python*/site-packages")))
        ready.write_text(wanted, "utf-8")


def _drop_cuda_code(packages: Path) -> None:
    """Delete torchaudio's compiled CUDA code: LLaMA-Factory imports torchaudio, which then works without it."""
    for library in (packages / "torchaudio" / "lib").glob("*.so"):
        library.unlink()


# as a user installs it: the interpreter that runs this has the tests' libraries too, and peft imports what it finds
TUNESMITH = Environment("tunesmith", (("-c", "constraints.txt", "--editable", "."),))
HUGGINGFACE = Environment("huggingface", (("-c", "constraints.txt", "trl", "transformers", "peft", "datasets"),))
LLAMAFACTORY = Environment(
    "llamafactory",
    (
        # --no-deps: torchvision and torchaudio would replace torch by a CUDA build; the rest as 0.9.5 pins it
        ("--no-deps", "llamafactory==0.9.5", "torchaudio==2.11.0"),
        (
            *("transformers==5.6.0", "peft==0.18.1", "accelerate==1.11.0", "datasets==4.0.0", "trl==0.24.0"),
            *("torchdata==0.11.0", "tyro<0.9.0", "av<=16.0.0", "gradio<=5.50.0,>=4.38.0", "matplotlib>=3.7.0"),
            *("einops", "fastapi", "fire", "hf-transfer", "modelscope", "numpy", "omegaconf", "packaging", "pandas"),
            *("protobuf", "pydantic", "pyyaml", "safetensors", "scipy", "sentencepiece", "sse-starlette"),
            *("tiktoken", "uvicorn"),
        ),
    ),
    _drop_cuda_code,
)
SWIFT = Environment("swift", (("ms-swift==4.6.0", TORCH),))
UNSLOTH = Environment(
    "unsloth",
    (
        # --no-deps: torchvision, xformers and triton are for GPUs; unsloth itself falls back to the CPU
        ("--no-deps", "unsloth==2026.10.9", "unsloth_zoo==2026.10.9"),
        ("transformers==5.17.0", "trl==1.15.0", "peft", "datasets<5", "requests", "protobuf", "sentencepiece"),
    ),
)


@dataclass(frozen=True)
class Setting:
    """One way to run a peer."""

    words: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A library to measure, and the ways to run it."""

    package: str
    runner: str
    environment: Environment | None
    """None: the interpreter that runs the benchmark."""
    settings: dict[str, Setting]
    workloads: tuple[str, ...] = ("couplets", "style", "chats", "long", "dpo")


OURS = "tunesmith"
PEERS: dict[str, Peer] = {
    OURS: Peer(
        "tunesmith",
        "run_tunesmith.py",
        TUNESMITH,
        {
            "default": Setting("the plan decides everything"),
            "compiled": Setting(
                "engine.compile: true, which the plan chooses for long runs", {"engine": {"compile": True}}
            ),
            "float32": Setting("engine.precision: float32", {"engine": {"precision": "float32"}}),
        },
    ),
    "transformers": Peer(
        "transformers",
        "run_transformers.py",
        HUGGINGFACE,
        {
            "default": Setting("every default; 4 × 8 examples a step", {"arguments": {}}),
            "float32": Setting(
                "weights loaded in float32", {"dtype": dict.fromkeys(_FROZEN_SHORT, "float32"), "arguments": {}}
            ),
            "bf16": Setting(
                "bf16, frozen weights in bfloat16, grouped by length, 32 a pass",
                {"dtype": _FROZEN_SHORT, "arguments": {**_BF16, "train_sampling_strategy": "group_by_length"}},
            ),
        },
        ("couplets", "style", "chats", "long"),
    ),
    "trl": Peer(
        "trl",
        "run_trl.py",
        HUGGINGFACE,
        {
            "default": Setting(
                "every default (bf16, gradient checkpointing); 4 × 8 examples a step", {"arguments": {}}
            ),
            "bf16": Setting(
                "bf16, frozen weights in bfloat16, grouped by length, 32 a pass, no checkpointing",
                {
                    "dtype": _FROZEN_SHORT,
                    "arguments": {
                        **_BF16,
                        "gradient_checkpointing": False,
                        "train_sampling_strategy": "group_by_length",
                    },
                },
            ),
            "packing": Setting(
                "packing (bfd, padding-free), bf16, frozen weights in bfloat16, no checkpointing",
                {"dtype": _FROZEN_SHORT, "arguments": {"bf16": True, "packing": True, "gradient_checkpointing": False}},
            ),
            "packing-labels": Setting(
                "packing, and the output head at learnt positions only, as TRL does on a GPU (patched for the CPU)",
                {
                    "dtype": _FROZEN_SHORT,
                    "arguments": {"bf16": True, "packing": True, "gradient_checkpointing": False},
                    "score_labels_only": True,
                },
            ),
        },
    ),
    "llamafactory": Peer(
        "llamafactory",
        "run_llamafactory.py",
        LLAMAFACTORY,
        {
            "default": Setting(
                "every default (float32, gradient checkpointing); 4 × 8 examples a step", {"arguments": {}}
            ),
            "bf16": Setting(
                "bf16, grouped by length, 32 a pass, no checkpointing",
                {
                    "arguments": {
                        **_BF16,
                        "disable_gradient_checkpointing": True,
                        "train_sampling_strategy": "group_by_length",
                    }
                },
            ),
            "packing": Setting(
                "neat_packing, bf16, no checkpointing",
                {
                    "arguments": {
                        "bf16": True,
                        "packing": True,
                        "neat_packing": True,
                        "disable_gradient_checkpointing": True,
                    }
                },
            ),
        },
    ),
    "swift": Peer(
        "ms-swift",
        "run_swift.py",
        SWIFT,
        {
            "default": Setting("every default; 4 × 8 examples a step", {"arguments": {}}),
            "bf16": Setting(
                "bfloat16, grouped by length, 32 a pass, no checkpointing",
                {
                    "arguments": {
                        "torch_dtype": "bfloat16",
                        "per_device_train_batch_size": 32,
                        "gradient_checkpointing": False,
                    }
                },
            ),
        },
        ("couplets", "style", "chats", "long"),
    ),
    "unsloth": Peer(
        "unsloth",
        "run_trl.py",
        UNSLOTH,
        {
            "default": Setting(
                "as its notebooks: bf16, its checkpointing; 4 × 8 examples a step",
                {"loading": {}, "checkpointing": "unsloth", "arguments": {}},
            ),
            "bf16": Setting(
                "bf16, 32 a pass, no checkpointing",
                {"loading": {}, "checkpointing": False, "arguments": {**_BF16, "gradient_checkpointing": False}},
            ),
        },
        ("couplets", "style", "chats", "long"),
    ),
}
REMARKS = {
    "llamafactory": (
        "its newest pins, with torch 2.13.0; without torchvision, which has no CPU build for it, and with the compiled "
        "CUDA code of torchaudio deleted, neither of which text needs"
    ),
    "swift": "the tokenizer's template is registered in its own words, as its documentation says for new ones",
    "unsloth": "without triton, xformers and torchvision; on a CPU it runs a fall-back of its own",
}
UNUSABLE = {
    "axolotl": (
        "0.19.0 pins itself to triton, xformers, liger-kernel and flash-linear-attention, which have no CPU build, and "
        "pip finds no set of versions that goes with torch 2.13.0"
    ),
}
