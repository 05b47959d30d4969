"""Export in fewer bits, and what fewer bits change."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.models.load import Place, model_from
from tunesmith.models.quantization import QUANTIZATIONS, Quantization
from tunesmith.models.quantized_base import TrainedOn
from tunesmith.run.probes import predictions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tunesmith.run.evaluate import Contestant


def find_quantization(name: str) -> Quantization:
    """Return the quantization called *name*; raise :class:`UserError` for one that cannot be made on this machine."""
    found: Quantization = QUANTIZATIONS.parse(name)
    if found.only_reads:
        raise UserError(
            f"--quantization: models are not quantized with {name} here: {found.only_reads}; use nf4 or int8"
        )
    for problem in found.check_installed():
        raise UserError(f"--quantization: {problem.message} ({problem.hint})")
    if any(found.check_machine("cpu")):
        why = f"models are exported on the CPU, where {name} does not compute"
        raise UserError(f"--quantization: {why}; use nf4 or int8")
    return found


def quantized(model: Any, quantization: Quantization, beside: Path) -> Any:
    """Return *model* quantized as one that is loaded so, through files beside the folder *beside*."""
    whole = beside.with_name(f"{beside.name}.whole")
    try:
        model.save_pretrained(whole)
        return model_from(Place(str(whole), quantized=TrainedOn(quantization)), model.dtype)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def quantized_drift(
    before: Contestant, now: Contestant, prompts: Sequence[list[int]], continuations: Sequence[list[int]]
) -> str:
    """Return a sentence on how *now*, on unquantized weights, differs from *before* over what that wrote."""
    same = total = 0
    change = 0.0
    for prompt, written in zip(prompts, continuations, strict=True):
        first, second = (predictions(each.model, prompt, written) for each in (before, now))
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        at = first.new_tensor(written).long()[:, None]
        change += float((first.gather(1, at) - second.gather(1, at)).abs().sum())
        total += len(written)
    figures = f"{same} of {total} likeliest tokens are the same, log-probabilities move by {change / max(1, total):.3f}"
    return f"this run trained on quantized weights, and is written on unquantized ones: {figures}"
