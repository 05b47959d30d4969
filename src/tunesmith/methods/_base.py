"""The contract of a training method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Start:
    """What :meth:`Method.begin` may use: the training data, one sequence at a time, and how long the run will be."""

    steps: int
    examples: int
    """How many training examples there are."""
    length: Callable[[int], int]
    """Return the tokens of the longest sequence of the example of this index."""
    run_example: Callable[[int], None]
    """Run the example of this index through the model without gradients: its hooks see every token, and no filling."""


class Method(Spec):
    """Decides which weights train.  ``apply`` marks them; every other weight is frozen."""

    learning_rate: ClassVar[float] = 2e-5
    """Peak rate where the recipe gives none."""

    adds_adapter: ClassVar[bool] = False
    """Whether the result is an adapter beside the base model (saved alone, merged on export) or a whole model."""

    keeps_base: ClassVar[bool] = True
    """Whether an adapter that is switched off leaves the base model; else the base is loaded anew to compare with."""

    cannot_merge: ClassVar[str] = ""
    """Why its adapter cannot become part of the weights; it can where empty."""

    needs_plain_weights: ClassVar[str] = ""
    """Why it cannot train beside weights that are quantized; it can where empty."""

    refused_quantizations: ClassVar[dict[str, str]] = {}
    """Kinds of quantized weights beside which it cannot train, each with why."""

    makes_up_for_quantization: ClassVar[bool] = False
    """Whether its adapter holds what quantization lost, so that it is not merged into the original weights."""

    cannot_continue: ClassVar[str] = ""
    """Why a saved adapter of it cannot go on training as it is; it can where empty."""

    def check_machine(self, device: str) -> Iterable[Problem]:  # noqa: ARG002 - for those that override it
        """Yield why it cannot train on *device* (``cpu``, ``cuda``, ``mps``)."""
        return ()

    def check_handed_over(self) -> Iterable[Problem]:
        """Yield why what it trains cannot be handed to a server (vLLM, ours) that writes answers with it."""
        problem = f"{self.type_name()} is handed to no server: those take low-rank adapters (LoRA) beside their base"
        yield Problem("method", problem, hint="use method: lora, or leave stage.sampling.server out")

    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Return *model* ready for training: adapters added, ``requires_grad`` set on exactly what trains.

        On the device ``meta`` the result has the same parameters, without values.
        """
        raise NotImplementedError

    def go_on(self, model: PreTrainedModel, adapter: Path) -> nn.Module:  # noqa: ARG002 - for those that override it
        """Return *model* with the saved *adapter* on it, ready to train further; raise where it is of another kind."""
        raise UserError(f"model.adapter: {self.type_name()} trains no adapter that could go on; leave it out")

    def begin(self, model: nn.Module, start: Start) -> None:
        """Set up what needs the data or the number of steps, on the device, before the first step and after a resume.

        What it makes of the same *start* must always be the same.
        """

    def before_step(self, model: nn.Module) -> None:
        """Add to the gradients, which are those of the whole step, clipped; called on every process."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Change the weights after the optimizer did; *step* counts from 1, and the gradients are still there."""

    def state(self, model: nn.Module) -> dict[str, Any]:  # noqa: ARG002 - for those that override it
        """Return what the next step depends on beside the trained weights, as tensors and plain values."""
        return {}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Go back to a :meth:`state`."""

    def optimizer_settings(self) -> dict[str, Any]:
        """Return the settings of the optimizer that belong to this method, whatever the optimizer."""
        return {}

    def notices(self, config: PreTrainedConfig) -> Iterable[str]:  # noqa: ARG002 - for those that override it
        """Yield what a user may not expect of it on a model of this *config*."""
        return ()

    def base_model(self, model: nn.Module) -> PreTrainedModel:
        """Return the transformers model inside what ``apply`` returned."""
        raise NotImplementedError

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what was trained to *folder*, as safetensors that transformers and peft load."""
        raise NotImplementedError
