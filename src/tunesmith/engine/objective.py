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
    from tunesmith.engine.pack import Pack


class Objective(Protocol):
    """What the loop needs of a stage."""

    def size(self, examples: Sequence[Example]) -> float:
        """Return what the summed loss over *examples* is divided by."""

    def coefficient(self, pack: Pack) -> Tensor | None:
        """Return the factors ``[m]`` of a loss that is linear in the log-probabilities, else None."""

    def penalties(self) -> Penalties:
        """Return what training adds to a loss that is given by its factors."""

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
        return objective.loss(model(**pack_arguments(pack)), pack)
    penalties = objective.penalties()
    if penalties == NO_PENALTIES or not model.training:
        return LinearLoss(model(**pack_arguments(pack), coefficient=coefficient))
    found = model(**pack_arguments(pack), coefficient=coefficient, penalties=penalties)
    plain, smoothing, z_loss = found.terms
    return LinearLoss(found.total, plain, {"label_smoothing_loss": smoothing, "z_loss": z_loss})
