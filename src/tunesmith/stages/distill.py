"""Distillation: learn a teacher's distribution of the next token, not only the token that came (arXiv:2306.13649)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from tunesmith.stages._base import Loss
from tunesmith.stages._taught import AbstractTaught

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.engine.example import Example
    from tunesmith.engine.likelihoods import Likelihoods
    from tunesmith.engine.model import PackModel
    from tunesmith.engine.pack import Pack


class Distill(AbstractTaught):
    """Minimise the divergence from a teacher at each token of the data's answers.

    The teacher stays in memory beside the model, unless ``top_k`` is set: then it is asked once, before the first step,
    and what it said is kept in the run's folder.
    """

    top_k: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Keep only the teacher's so many likeliest tokens, and the rest as one; such as 32. Left out, all of them."""

    sft_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the data's own tokens' negative log-likelihood beside the divergence."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.top_k is not None and self.temperature != 1:
            raise ValueError("temperature needs the whole vocabulary, of which top_k keeps a part; leave one out")
        return self

    def reference_model(self) -> str | None:
        """Return the teacher, where it is asked once."""
        return self.teacher if self.top_k is not None else None

    def teacher_model(self) -> str | None:
        """Return the teacher, where it stays."""
        return self.teacher if self.top_k is None else None

    def begin(self, model: PackModel) -> None:
        """Load the teacher beside *model*, where it stays."""
        if self.top_k is None:
            super().begin(model)

    def prepare(
        self, data: Sequence[Example], chosen: Sequence[int], likelihoods: Likelihoods
    ) -> list[tuple[Any, ...]]:
        """Return what the teacher finds likeliest at each trained token: ids and log-probabilities, row by row."""
        assert self.top_k is not None
        return [
            (ids.ravel().tolist(), np.round(log_p.astype(np.float64), 5).ravel().tolist())
            for ids, log_p in likelihoods.likeliest([data[index] for index in chosen], self.top_k)
        ]

    def candidates(self, pack: Pack) -> Tensor | None:
        """Return the teacher's likeliest tokens, where it was asked beforehand."""
        return self._kept(pack, 0) if self.top_k is not None and all(e.values for e in pack.examples) else None

    def _kept(self, pack: Pack, place: int) -> Tensor:
        """Return ``[m, k]`` of what is kept beside the examples, in the order of the pack's predictions."""
        import torch

        flat = np.concatenate([np.asarray(example.values[place]) for example in pack.examples])
        rows = torch.from_numpy(flat).to(pack.target.device).view(len(pack.target), -1)
        # kept by sequence, and in each in the order of its tokens
        order = torch.argsort(pack.sequence, stable=True)
        return torch.empty_like(rows).index_copy_(0, order, rows)

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the weighted sum of divergences; of ``[m]``, where no teacher was asked, that of imitation."""
        from tunesmith.engine.divergence import divergence, with_tail

        if self.top_k is None or log_probabilities.dim() == 1:
            return super().loss(log_probabilities, pack)
        log_p, own = log_probabilities[:, 0], log_probabilities[:, 1:]
        apart = divergence(with_tail(own), with_tail(self._kept(pack, 1).to(own.dtype)), self.beta)
        return self.divergence_loss(apart, log_p, pack)

    def divergence_loss(self, apart: Tensor, log_p: Tensor, pack: Pack) -> Loss:
        """Return the divergences, with imitation of the data's own tokens where that counts."""
        total, imitation = (pack.weight * apart).sum(), -(pack.weight * log_p).sum()
        parts = {"divergence": total.detach(), "sft_loss": imitation.detach()}
        return Loss(total + self.sft_weight * imitation if self.sft_weight else total, parts)
