"""What stages share that learn from a teacher which stays beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from tunesmith.core.errors import Problem
from tunesmith.models.schema import Model
from tunesmith.stages._base import Loss
from tunesmith.stages._imitation import AbstractImitation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from tunesmith.engine.example import Example
    from tunesmith.engine.model import PackModel
    from tunesmith.engine.pack import Pack


def _in_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


class AbstractTaught(AbstractImitation):
    """Minimise the divergence from a teacher at each trained token, as a mean over those of a step.

    The mean is over all of a step's trained tokens, however they are laid out; TRL's ``generalized_jsd_loss`` with
    ``batchmean`` takes the same of one batch.  The teacher reads the same tokens, so it must have the same tokenizer.
    """

    teacher: Annotated[str, AfterValidator(_in_home)]
    """The model to learn from: a run, a folder or a Hub name."""

    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Which divergence: 0 forward KL (all that a teacher says), 1 reverse KL (its best), between Jensen–Shannon."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What the logits of both are divided by; above 1 what the teacher finds unlikely counts more."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield that the teacher cannot be found."""
        yield from super().check(recipe)
        for found in Model(path=self.teacher).check():
            yield Problem("stage.teacher", found.message, hint=found.hint)

    def teacher_model(self) -> str | None:
        """Return the teacher, which stays."""
        return self.teacher

    def begin(self, model: PackModel) -> None:
        """Load the teacher beside *model*."""
        from tunesmith.engine.divergence import Teacher
        from tunesmith.engine.model import PackModel as Packed
        from tunesmith.models.load import find_model, model_from

        loaded: Any = model_from(find_model(self.teacher), model.base.dtype, merge=True)
        loaded = loaded.to(model.base.device)
        loaded.config.use_cache = False
        packed = Packed(loaded, loaded, model.attention.names).eval().requires_grad_(False)
        model.teacher = Teacher(packed, self.beta, self.temperature)

    def size(self, examples: Sequence[Example]) -> float:
        """Return the summed weight of the trained tokens."""
        return float(sum(sequence.weight_total for example in examples for sequence in example.sequences))

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the weighted sum of divergences; of ``[m]``, where no teacher was asked, that of imitation."""
        if log_probabilities.dim() == 1:
            return Loss(-(pack.weight * log_probabilities).sum(), {})
        apart, log_p = log_probabilities.unbind(1)
        return self.divergence_loss(apart, log_p, pack)

    def divergence_loss(self, apart: Tensor, log_p: Tensor, pack: Pack) -> Loss:
        """Return the loss of divergences ``[m]`` and of the log-probabilities ``[m]`` of the tokens that came."""
        raise NotImplementedError
