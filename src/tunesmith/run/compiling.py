"""Whether compiling the transformer blocks wins back its warm-up: a small model of costs, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.settings import compiled_code_folder, cpp_compiler
from tunesmith.engine.pack import ROWS
from tunesmith.run.machine import Machine, library_versions

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.run.plan import Plan

# AMD EPYC, 2 cores, bfloat16, LoRA on couplets, 512 wide, 8 layers, two alternating runs (2026-11-21): median step
# 0.568 and 0.503 s eager, 0.429 and 0.431 s compiled; until the end of the first step 25 s more without kept code, 12 s
# more with it.  The rate a core reaches is estimated from step times.
_GAIN = 0.14
_COLD, _WARM = 25.0, 12.0
_FLOPS_A_CORE = 8e10
# the length of a run is an estimate, so the gain has to be so many times the price
_MARGIN = 2.0


@dataclass(frozen=True)
class Compiling:
    """Whether the blocks of a run are compiled, and why."""

    compile: bool
    why: str
    notice: str | None = None
    """Set where it was asked for and cannot be."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run computes, as far as it is known before a weight loads."""

    steps: int
    tokens_per_step: int
    layers: int
    hidden: int
    trains_all: bool
    """Frozen weights need no gradient of their own."""

    def seconds(self, cores: int) -> float:
        """Return about how long the steps take; a layer has about twelve times the square of its width in weights."""
        passes = 6 if self.trains_all else 4
        flops = passes * 12 * self.hidden**2 * self.layers * self.tokens_per_step * self.steps
        return flops / (_FLOPS_A_CORE * cores)


def settle_compiling(
    wanted: Literal["auto"] | bool, plan: Plan, machine: Machine, work: Work, kept: Path | None
) -> Compiling:
    """Return whether *plan*'s run is to be compiled; *kept* marks the code of an earlier run, if there is any."""
    if wanted is False:
        return Compiling(False, "")
    if refusal := _refusal(plan):
        notice = None if wanted == "auto" else f"engine.compile: {refusal}; the blocks stay eager"
        return Compiling(False, refusal, notice)
    if wanted is True:
        return Compiling(True, "")
    if plan.precision != "bfloat16":
        return Compiling(False, "its gain was measured in bfloat16 only")
    warm = kept is not None and kept.exists()
    price, seconds = _WARM if warm else _COLD, work.seconds(machine.cores)
    said = (
        f"would save about {_GAIN * seconds:.0f} s ({_GAIN:.0%} of about {seconds:.0f} s of training), "
        f"and costs {price:.0f} s {'with the code of an earlier run' if warm else 'the first time'}"
    )
    return Compiling(_GAIN * seconds > _MARGIN * price, f"{said}; worth it from {_MARGIN:g} times the price")


def _refusal(plan: Plan) -> str | None:
    """Return why the blocks of *plan*'s run cannot be compiled."""
    if plan.layout in ROWS:
        return f"only packs are compiled, and the layout is {plan.layout}"
    if plan.device != "cpu" or "segments" not in plan.attention:
        return (
            f"not measured on {plan.device} with {plan.attention[0]} attention: only segments on the CPU are compiled"
        )
    if plan.processes > 1:
        return f"not measured with {plan.processes} processes"
    if plan.quantization is not None:
        return "quantized weights are unpacked by kernels of their library, which were not measured compiled"
    if plan.recipe.engine.gradient_checkpointing:
        return "gradient checkpointing computes blocks again from their own forward pass"
    if cpp_compiler() is None:
        return "torch.compile needs a C++ compiler, and this machine has none (install g++, or set CXX)"
    return None


def measure_work(plan: Plan, config: Any, tokens_per_step: int) -> Work:
    """Return what *plan*'s run computes, from its model's configuration."""
    text = config.get_text_config()
    return Work(
        steps=plan.steps,
        tokens_per_step=tokens_per_step,
        layers=int(getattr(text, "num_hidden_layers", None) or 0),
        hidden=int(getattr(text, "hidden_size", None) or 0),
        trains_all=not plan.recipe.method.adds_adapter,
    )


def compiled_mark(plan: Plan, config: Any) -> Path:
    """Return the file that says that such a run was compiled here before: same model, method, precision, libraries."""
    method = plan.recipe.method.model_dump_json()
    parts = (config.to_json_string(use_diff=False), method, plan.precision, sorted(library_versions().items()))
    return compiled_code_folder() / f"tunesmith-{sha256(repr(parts).encode()).hexdigest()[:16]}"
