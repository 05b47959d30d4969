"""What the loop asks of a stage, and the loss of one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.engine.model import pack_arguments
from tunesmith.engine.penalties import NO_PENALTIES, Penalties

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from tunesmith.engine.example import Example
    from tunesmith.engine.likelihoods import Likelihoods
    from tunesmith.engine.pack import Pack


class Objective(Protocol):
    """What the loop needs of a stage."""

    @property
    def has_perplexity(self) -> bool:
        """Whether the exponential of the loss is a perplexity."""

    def size(self, examples: Sequence[Example]) -> float:
        """Return what the summed loss over *examples* is divided by."""

    def coefficient(self, pack: Pack) -> Tensor | None:
        """Return the factors ``[m]`` of a loss that is linear in the log-probabilities, else None."""

    def candidates(self, pack: Pack) -> Tensor | None:
        """Return ``[m, k]``: further tokens whose log-probabilities the loss asks for at each prediction, else None."""

    def penalties(self) -> Penalties:
        """Return what training adds to a loss that is given by its factors."""

    def complete(self, examples: list[Example], data: Sequence[Example], likelihoods: Likelihoods) -> list[Example]:
        """Return *examples*, over which one loss is taken, with what follows from all of them; see ``Stage``."""

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Any:
        """Return ``total`` and ``reported`` (scalar tensors, summed) and ``parts`` (sums worth logging)."""


@dataclass(frozen=True)
class LinearLoss:
    """The summed loss of a pass whose stage gave coefficients."""

    total: Tensor
    reported: Tensor | None = None
    """The loss without penalties, where there are any."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """What they add."""


def pass_loss(model: Any, objective: Objective, pack: Pack) -> Any:
    """Return the loss of *objective* over one pass of *model*, as :meth:`Objective.loss` gives it."""
    coefficient = objective.coefficient(pack)
    if coefficient is None:
        candidates = objective.candidates(pack)
        more = {} if candidates is None else {"candidates": candidates}
        return objective.loss(model(**pack_arguments(pack), **more), pack)
    penalties = objective.penalties()
    if penalties == NO_PENALTIES or not model.training:
        return LinearLoss(model(**pack_arguments(pack), coefficient=coefficient))
    found = model(**pack_arguments(pack), coefficient=coefficient, penalties=penalties)
    plain, smoothing, z_loss = found.terms
    return LinearLoss(found.total, plain, {"label_smoothing_loss": smoothing, "z_loss": z_loss})


def add_parts(parts: dict[str, Any], more: Mapping[str, Any], counts: float) -> None:
    """Add what a pass that counts so much says beside its loss to *parts*."""
    for name, value in more.items():
        parts[name] = parts.get(name, 0.0) + value * counts


def add_up(totals: Sequence[Tensor]) -> Tensor:
    """Return the sum in float64 on the CPU, waiting for the device once."""
    import torch

    return torch.stack(list(totals)).cpu().double().sum() if totals else torch.zeros((), dtype=torch.float64)
