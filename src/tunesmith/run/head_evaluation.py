"""Ask a model that gives numbers in place of text: on held-out data once training has ended, and as a reward."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Message
from tunesmith.engine.example import Example
from tunesmith.stages._heads import in_order, whole_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tunesmith.core.events import Listener
    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.loop import TrainingLoop
    from tunesmith.engine.model import PackModel
    from tunesmith.engine.pack import Layout, Pack
    from tunesmith.run.settle import Settled
    from tunesmith.templates.chat import ChatTemplate

_TOKENS = 4096  # a pass has so many, where no plan says how many


def _passes(
    packed: PackModel, examples: Sequence[Example], layout: Layout, tokens_per_pass: int, device: Any
) -> Iterator[tuple[Pack, Tensor]]:
    """Yield packs of *examples* with ``[predictions, outputs]``, what the head makes of each."""
    import torch

    from tunesmith.engine.model import pack_arguments
    from tunesmith.engine.pack import build_packs

    packed.eval()
    with torch.no_grad():
        for pack in build_packs(examples, layout, tokens_per_pass):
            tensors = pack.to(device)
            yield tensors, packed(**pack_arguments(tensors))


def _of_sequences(pack: Pack, outputs: Tensor) -> Iterator[tuple[Example, list[NDArray[np.float32]]]]:
    """Yield each example of *pack* with ``[predictions, outputs]`` of each of its sequences."""
    counts = [sequence.trained for example in pack.examples for sequence in example.sequences]
    parts = iter(np.split(in_order(outputs, pack).cpu().numpy(), np.cumsum(counts)[:-1]))
    for example in pack.examples:
        yield example, [next(parts) for _ in example.sequences]


def evaluate_head(settled: Settled, loop: TrainingLoop, layout: Layout, source: str, emit: Listener) -> dict[str, Any]:
    """Return what the validation data say of the trained head, in the shape of any evaluation; no text is asked for."""
    plan, prepared = settled.plan, settled.prepared
    assert prepared.validation is not None
    stage, device = plan.recipe.stage, loop.accelerator.device
    examples = list(prepared.validation.examples)
    emit({"kind": "notice", "text": f"evaluating on {len(examples)} held-out examples"})
    total, asked, found = 0.0, [], []
    with loop.accelerator.autocast():  # what trains is of a longer type than the rest
        for pack, outputs in _passes(loop.inner, examples, layout, plan.tokens_per_pass, device):
            total += float(stage.loss(outputs, pack).total)
            for example, parts in _of_sequences(pack, outputs):
                asked.append(example)
                found += parts
    scores = stage.measure(found, asked)
    return {
        "models": ["tuned"],
        "scores": {name: {"tuned": value} for name, value in scores.items()},
        "loss": {"tuned": total / stage.size(examples)},
        "perplexity": {},
        "rows": [],
        "data": source,
        "examples": len(prepared.held_out),
    }


class RewardJudge:
    """A trained reward model that says what answers are worth."""

    def __init__(self, path: str, device: str = "auto") -> None:
        """Load the run, adapter or folder at *path*; raise :class:`UserError` where it is no reward model."""
        import torch

        from tunesmith.engine.model import PackModel, default_device
        from tunesmith.models.heads import head_at
        from tunesmith.models.load import check_model, find_model, model_from, tokenizer_from
        from tunesmith.templates.chat import ChatTemplate

        check_model(path)
        place = find_model(path)
        head = head_at(place.base, place.adapters)
        if head is None or (head.kind, head.outputs) != ("sequence", 1):
            what = "writes text" if head is None else f"reads each {head.kind} with {head.outputs} outputs"
            raise UserError(f"reward_model: {path} {what}; name a run of stage: reward, whose one number is a reward")
        self.device = default_device(device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        model: Any = model_from(place, dtype, head=head).to(self.device)  # type: ignore[arg-type]
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.template: ChatTemplate = ChatTemplate(tokenizer_from(place.tokenizer))
        base.config.use_cache = False
        # a row a text: no layout is checked here against the plain model
        self.packed: PackModel = PackModel(model, base, ("dense",)).eval()

    def __call__(self, answered: Sequence[tuple[Conversation, str]]) -> list[float]:
        """Return the reward of each answer to its conversation."""
        talks = [
            replace(c, messages=(*c.prompt(), Message("assistant", answer)), text=None, rejected=(), shared=0)
            for c, answer in answered
        ]
        examples = [Example((sequence,)) for sequence in whole_texts(talks, self.template)]
        rewards = {
            id(example): float(part[0, 0])
            for pack, outputs in _passes(self.packed, examples, "padded", _TOKENS, self.device)
            for example, (part,) in _of_sequences(pack, outputs)
        }
        found = [rewards[id(example)] for example in examples]
        if not all(map(math.isfinite, found)):
            raise UserError("reward_model: a reward is infinite or no number; the model is broken")
        return found
