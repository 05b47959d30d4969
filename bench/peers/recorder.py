"""A callback that measures any trainer built on transformers' Trainer."""

from typing import Any

import torch
from measure import Counts, Meter
from transformers import TrainerCallback


class Recorder(TrainerCallback):
    """Counts what the model is given and takes the time after every optimizer step."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.counts = meter, Counts()

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.step(self.counts)
        self.counts = Counts()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.meter.losses.append(float(logs["loss"]))

    def _count(self, _model: Any, _positional: Any, given: dict[str, Any]) -> None:
        # a reference model's pass (DPO) is not counted: the same samples come again
        if not torch.is_grad_enabled() or given.get("input_ids") is None:
            return
        tokens, labels = given["input_ids"], given.get("labels")
        first, second = self.meter.task.opening
        opens = (tokens[:, :-1] == first) & (tokens[:, 1:] == second)
        self.counts.samples += int(opens.sum())
        self.counts.tokens += int((tokens != self.meter.task.padding).sum())
        self.counts.tokens_fed += tokens.numel()
        if labels is not None:
            self.counts.trained_tokens += int((labels[:, 1:] != -100).sum())
