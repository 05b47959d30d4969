"""The contract of a quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.errors import Problem
from tunesmith.core.registry import Spec, is_missing

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

_SETTING = "model.quantization"


class Quantization(Spec):
    """Says how transformers keeps a model's linear layers in fewer bits; all but those stays as it is."""

    packages: ClassVar[tuple[str, ...]] = ()
    """What it needs beyond Tunesmith's own requirements, as it is imported and installed."""

    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    """Where it computes."""

    only_reads: ClassVar[str] = ""
    """Why it only reads models that were quantized before; where empty it also quantizes while loading."""

    cannot_train: ClassVar[str] = ""
    """Why no adapter trains on it; one does where empty."""

    keeps_inputs: ClassVar[bool] = False
    """Whether a product keeps its input for the backward pass, which frozen weights do not need."""

    usual_bytes: ClassVar[float]
    """Bytes a weight, where a subclass does not count them."""

    def configure(self, dtype: torch.dtype) -> Any:
        """Return transformers' configuration; *dtype* is that of the rest of the model."""
        raise NotImplementedError

    def bytes_per_weight(self, rows: int, columns: int) -> float:  # noqa: ARG002 - for those that override it
        """Return the bytes of each weight of a linear layer ``[rows, columns]``, what belongs to it included."""
        return self.usual_bytes

    @property
    def loses_bits(self) -> bool:
        """Whether the loaded weights are quantized, and not only the files."""
        return True

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield a package that is missing, and a method that needs the weights themselves."""
        name = self.type_name()
        yield from self.check_installed()
        if not self.loses_bits:
            return
        if self.cannot_train:
            yield Problem(_SETTING, f"{name} does not train: {self.cannot_train}", hint=self.hint_to_train())
        elif recipe.method.needs_plain_weights:
            why = f"{recipe.method.type_name()} does not train on {name} weights: {recipe.method.needs_plain_weights}"
            yield Problem("method", why, hint="use method: lora, or leave model.quantization out")
        elif name in recipe.method.refused_quantizations:
            why = f"{recipe.method.type_name()} does not train on {name} weights: "
            why += recipe.method.refused_quantizations[name]
            yield Problem("method", why, hint="use model.quantization: nf4, or method: lora")

    def check_installed(self) -> Iterable[Problem]:
        """Yield each package that is missing; nothing is imported."""
        for package in self.packages:
            if is_missing(package):
                problem = f"{self.type_name()} needs the package {package}"
                yield Problem(_SETTING, problem, hint=f"pip install {package}")

    def check_machine(self, device: str) -> Iterable[Problem]:
        """Yield why it cannot compute on *device* (``cpu``, ``cuda``, ``mps``)."""
        if device not in self.devices:
            problem = f"{self.type_name()} computes on {' and '.join(self.devices)} only, and this machine has {device}"
            yield Problem(_SETTING, problem, hint="use nf4 or int8, which also compute on a CPU, or leave it out")

    def described(self) -> str:
        """Return its name and the settings that are not the usual ones, as a recipe writes them."""
        settings = {name: value for name, value in self.model_dump().items() if name in self.model_fields_set}
        changed = [f"{name}: {value}" for name, value in settings.items() if name != "type"]
        return f"{self.type_name()} ({', '.join(changed)})" if changed else self.type_name()

    def hint_to_train(self) -> str:
        """Return what to use for training instead."""
        return "use nf4 or int8"
