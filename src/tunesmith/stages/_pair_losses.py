"""Losses on pairs that compare a model with a reference: the names and the formulas of TRL 1.16.

Legend: P pairs.  ``chosen`` and ``rejected`` are log-ratios, log p(ending) under the model less that under the
reference; scores are what an f-divergence makes of them, and the log-ratios themselves for the usual one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """What a loss knows of the pairs of a pass; every tensor is ``[P]``."""

    chosen: Tensor
    rejected: Tensor
    chosen_score: Tensor
    rejected_score: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    match_chosen: Tensor
    """What the losses that sort a step compare the chosen ending with …"""
    match_rejected: Tensor
    """… and the rejected one; neither has a gradient."""
    beta: float
    smoothing: float
    temperature: float

    @property
    def margin(self) -> Tensor:
        """How much more the model likes the chosen ending than the reference does, times beta."""
        return self.beta * (self.chosen_score - self.rejected_score)

    @property
    def mean_margin(self) -> Tensor:
        """The same with each score divided by its ending's length, without beta."""
        return self.chosen_score / self.chosen_length - self.rejected_score / self.rejected_length


def _log_sigmoid(values: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def smoothed(margin: Tensor, smoothing: float) -> Tensor:
    """Return the negative log-sigmoid of *margin*, as if a share *smoothing* of the pairs were the wrong way round."""
    if not smoothing:
        return -_log_sigmoid(margin)
    return -(1 - smoothing) * _log_sigmoid(margin) - smoothing * _log_sigmoid(-margin)


def sigmoid(r: Ratios) -> Tensor:
    """DPO (arXiv:2305.18290), with label smoothing as conservative DPO; TRL 1.16 takes none here."""
    return smoothed(r.margin, r.smoothing)


def sigmoid_norm(r: Ratios) -> Tensor:
    """DPO on log-ratios divided by length (Tülu 3, arXiv:2411.15124)."""
    return -_log_sigmoid(r.beta * r.mean_margin)


def hinge(r: Ratios) -> Tensor:
    """SLiC's hinge (arXiv:2305.10425) as RSO (arXiv:2309.06657) takes it."""
    return (1 - r.margin).relu()


def ipo(r: Ratios) -> Tensor:
    """IPO (arXiv:2310.12036, equation 17), by length as its authors confirmed; beta is their tau."""
    return (r.mean_margin - 1 / (2 * r.beta)).square()


def robust(r: Ratios) -> Tensor:
    """Robust DPO (arXiv:2403.00409): unbiased where a share ``label_smoothing`` of the pairs is the wrong way round."""
    clean = -(1 - r.smoothing) * _log_sigmoid(r.margin)
    return (clean + r.smoothing * _log_sigmoid(-r.margin)) / (1 - 2 * r.smoothing)


def exo_pair(r: Ratios) -> Tensor:
    """EXO (arXiv:2402.00856, equation 16): reverse KL to the preference, smoothed by ``label_smoothing``."""
    log_win, log_lose = _log_sigmoid(r.margin), _log_sigmoid(-r.margin)
    wins = log_win.exp() * (log_win - math.log1p(-r.smoothing))
    return wins + log_lose.exp() * (log_lose - math.log(r.smoothing))


def nca_pair(r: Ratios) -> Tensor:
    """NCA (arXiv:2402.05369): the likelihood of each ending by itself, so that the chosen one's does not fall."""
    chosen, rejected = r.beta * r.chosen, r.beta * r.rejected
    return -_log_sigmoid(chosen) - 0.5 * _log_sigmoid(-chosen) - 0.5 * _log_sigmoid(-rejected)


def bco_pair(r: Ratios) -> Tensor:
    """BCO (arXiv:2404.04656) on pairs, without its moving shift, as TRL has it."""
    return -_log_sigmoid(r.beta * r.chosen) - _log_sigmoid(-r.beta * r.rejected)


def sppo_hard(r: Ratios) -> Tensor:
    """SPPO (arXiv:2405.00675, equation 4.7) with certain preferences."""
    return (r.chosen - 0.5 / r.beta).square() + (r.rejected + 0.5 / r.beta).square()


def apo_zero(r: Ratios) -> Tensor:
    """APO-zero (arXiv:2408.06266, equation 7): for chosen endings better than the model's own."""
    return 1 - (r.beta * r.chosen).sigmoid() + (r.beta * r.rejected).sigmoid()


def apo_down(r: Ratios) -> Tensor:
    """APO-down (arXiv:2408.06266, equation 8): for chosen endings worse than the model's own."""
    return (r.beta * r.chosen).sigmoid() + 1 - (r.beta * (r.chosen - r.rejected)).sigmoid()


def discopop(r: Ratios) -> Tensor:
    """DiscoPOP (arXiv:2406.08414, equation 5): a loss that a language model found."""
    share = (r.margin / r.temperature).sigmoid()
    return -_log_sigmoid(r.margin) * (1 - share) + (-r.margin).exp() * share


def aot(r: Ratios) -> Tensor:
    """AOT (arXiv:2406.05882) on pairs: margins of the model against the reference's, each sorted over the step."""
    return smoothed(r.beta * (r.chosen - r.rejected - r.match_chosen), r.smoothing)


def aot_unpaired(r: Ratios) -> Tensor:
    """AOT (arXiv:2406.05882): chosen against rejected log-ratios, each sorted over the step.

    The two of a comparison may be in different passes: each gets its gradient beside the other's value.
    """
    by_chosen = smoothed(r.beta * (r.chosen - r.match_chosen), r.smoothing)
    by_rejected = smoothed(r.beta * (r.match_rejected - r.rejected), r.smoothing)
    return by_chosen + by_rejected - by_rejected.detach()


LOSSES: Mapping[str, Callable[[Ratios], Tensor]] = {
    loss.__name__: loss
    for loss in (
        *(sigmoid, sigmoid_norm, hinge, ipo, robust, exo_pair, nca_pair, bco_pair, sppo_hard),
        *(apo_zero, apo_down, discopop, aot, aot_unpaired),
    )
}
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")
"""Those that take label smoothing."""
ON_MARGINS = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
"""Those that other divergences than the usual one are defined for."""
BY_LENGTH = ("sigmoid_norm", "ipo")
"""Those that divide by the number of tokens."""
SORTED = ("aot", "aot_unpaired")
"""Those that compare over the whole step."""

_LARGEST = 80.0  # exponents up to this are finite in float32


def divergence_score(log_ratio: Tensor, name: str, alpha: float) -> Tensor:
    """Return f'(ratio) of f-DPO (arXiv:2309.16240), up to a constant that pairs cancel."""
    if name == "forward_kl":
        return 1 - (-log_ratio).exp()
    if name == "js_divergence":
        return math.log(2) + _log_sigmoid(log_ratio)
    if name == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        return (((alpha - 1) * log_ratio).clamp(max=_LARGEST).exp() - 1) / (alpha - 1)
    return log_ratio
