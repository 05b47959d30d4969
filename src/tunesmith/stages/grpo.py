"""GRPO: answers that beat the others to the same prompt get likelier (arXiv:2402.03300); its variants are options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunesmith.stages._advantages import group_advantages, separate_advantages
from tunesmith.stages._credit import PackCredit, clipped, clipped_share, divergence, spread
from tunesmith.stages._rewarded import AbstractClipped, Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# what a token's loss is divided by before it is added up
_BY_SEQUENCE = ("grpo", "sapo")


class GRPO(AbstractClipped):
    """Group relative policy optimisation: an answer is as good as it is better than its group."""

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt: the group that each is compared with."""

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo"] = "dapo"
    """``dapo`` averages over tokens, ``grpo`` over answers, ``dr_grpo`` by the longest length; the guide has all."""

    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether ratios are each token's, or one an answer (``sequence``: GSPO, arXiv:2507.18071)."""

    delta: Annotated[float, Field(gt=0)] | None = None
    """Upper bound of ratios where the advantage is below 0 (two-sided clipping); left out, none."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the deviation of the group or of the batch, or nothing (Dr. GRPO)."""

    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Whether scores are added before they are compared within the group, or each is scaled first (GDPO)."""

    sapo_temperature_pos: Annotated[float, Field(gt=0)] = 1.0
    """Steepness of ``sapo`` where the advantage is above 0."""

    sapo_temperature_neg: Annotated[float, Field(gt=0)] = 1.05
    """Steepness of ``sapo`` elsewhere."""

    @model_validator(mode="after")
    def _check_variant(self) -> Self:
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("loss_type: cispo takes epsilon_high as the most that a ratio may be; set it, to 5.0")
        if self.loss_type == "luspo" and self.importance_sampling_level != "sequence":
            raise ValueError("loss_type: luspo is about sequences; set importance_sampling_level: sequence")
        if self.delta is not None and self.loss_type in ("cispo", "sapo"):
            raise ValueError(f"delta: loss_type: {self.loss_type} has no ratios to bound; leave it out")
        return self

    def advantages(self, batch: Batch) -> list[NDArray[np.float32]]:
        if self.multi_objective_aggregation == "sum_then_normalize":
            found = group_advantages(batch.reward, self.scale_rewards)
        else:
            weights = [reward.weight for reward in self.rewards]
            parts = list(batch.parts.values())
            # what is taken off for length has the weight 1
            weights += [1.0] * (len(parts) - len(weights))
            found = separate_advantages(list(zip(parts, weights, strict=True)))
        return spread(found.ravel().tolist(), batch.lengths)

    def step_size(self, batch: Batch) -> float:
        answers = float(len(batch.lengths))
        if self.loss_type in ("grpo", "sapo", "luspo"):
            return answers
        if self.loss_type == "dr_grpo":
            return answers * self.sampling.max_new_tokens
        counted = zip(batch.lengths, batch.counted, strict=True)
        return float(max(1, sum(length for length, counts in counted if counts)))

    def policy_loss(self, log_p: Tensor, credit: PackCredit) -> tuple[Tensor, dict[str, Any]]:
        old = log_p.detach() if credit.old is None else credit.old
        log_ratio = log_p - old
        if self.importance_sampling_level == "sequence":
            mean = credit.sum_by_sequence(log_ratio) / credit.tokens_by_sequence()
            log_ratio = mean[credit.sequence]
        ratio = log_ratio.exp()
        loss = self._token_loss(ratio, log_p, credit.advantage)
        parts: dict[str, Any] = {}
        if self.loss_type not in ("cispo", "sapo"):
            bounded = ratio if self.delta is None else ratio.clamp(max=self.delta)
            share = clipped_share(bounded, credit.advantage, self.epsilon, self.high)
            parts["clipped"] = credit.mean(share)
        if credit.start is not None:
            apart = divergence(log_p, credit.start)
            loss = loss + self.beta * apart
            parts["divergence"] = credit.mean(apart)
        if self.loss_type in _BY_SEQUENCE:
            return (credit.sum_by_sequence(loss) / credit.tokens_by_sequence()).sum(), parts
        return (loss * credit.counted).sum(), parts

    def _token_loss(self, ratio: Tensor, log_p: Tensor, advantage: Tensor) -> Tensor:
        import torch

        if self.loss_type == "cispo":
            return -ratio.clamp(max=self.high).detach() * advantage * log_p
        if self.loss_type == "sapo":
            steep = torch.where(advantage > 0, self.sapo_temperature_pos, self.sapo_temperature_neg)
            return -torch.sigmoid(steep * (ratio - 1)) * 4 / steep * advantage
        return clipped(ratio, advantage, self.epsilon, self.high, self.delta)
