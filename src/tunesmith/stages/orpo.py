"""ORPO: imitate the chosen ending, and make it likelier than the rejected one, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.stages._pairs import AbstractPairs, Judged, PairSums, prompt_length
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class ORPO(AbstractPairs):
    """Imitation and a log odds ratio in one loss, from a base model on (arXiv:2403.07691); it needs no SFT before.

    What is imitated is the chosen ending; TRL's and the authors' code imitate its prompt, too: ``train_on_prompt``.
    """

    rate_share = 0.25

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Weight of the odds ratio beside imitation; the paper's lambda."""

    sft_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of imitation: the chosen endings' negative log-likelihood, a mean over their tokens."""

    train_on_prompt: bool = False
    """Imitate prompts, too, as TRL does."""

    def more_sequences(self, chosen: Sequence[TokenSequence]) -> Sequence[TokenSequence]:
        """Return the prompt where it is imitated: a sequence that the chosen one begins with."""
        length = prompt_length(chosen[0])
        if not self.train_on_prompt or length < 2:
            return ()
        return (TokenSequence.trained_from(chosen[0].tokens[:length].tolist(), 1),)

    def judge(self, sums: PairSums) -> Judged:
        """Return the negative log-sigmoid of the log odds ratio (equations 4 and 7)."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = sums.chosen / sums.chosen_length, sums.rejected / sums.rejected_length
        log_odds = (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))
        return Judged(-self.beta * logsigmoid(log_odds), self.beta * chosen, self.beta * rejected)


def _log_of_rest(log_p: Tensor) -> Tensor:
    """Return ``log(1 - exp(log_p))`` without loss of digits at either end."""
    import torch

    below = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return torch.where(below > -0.6931, (-torch.expm1(below)).log(), torch.log1p(-below.exp()))
