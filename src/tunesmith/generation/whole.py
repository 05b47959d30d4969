"""Replies through transformers' own ``generate``: batches that begin and end together, and beam search.

The tokens are chosen by our sampler all the same: it stands in the place of a logits processor, and leaves the chosen
token alone as possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunesmith.generation.reply import Choice
from tunesmith.generation.sampler import Sampler, repeat_less

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunesmith.generation.constraints import Walk
    from tunesmith.generation.reply import Reply


def write_whole(model: Any, replies: Sequence[Reply], before_pass: Callable[[], None]) -> int:
    """Write *replies*, whose prompts are of one length, to their end; return the passes it took.

    *before_pass* is called before each token: whoever ends replies from outside does it there.
    """
    from transformers import LogitsProcessorList

    sampler: list[Sampler] = []
    steps = 0

    def choose(written: Tensor, logits_NV: Tensor) -> Tensor:  # noqa: ARG001 - a processor's
        nonlocal steps
        before_pass()
        if not sampler:
            sampler.append(Sampler(replies, logits_NV.shape[1], logits_NV.device))
        steps += 1
        only_NV = torch.full_like(logits_NV, -torch.inf)
        for row, choice in enumerate(sampler[0].choose(logits_NV.clone().float())):
            only_NV[row, choice.token if choice else 0] = 0.0
            if choice is not None:
                replies[row].take(choice)
        return only_NV

    _generate(model, replies, 1, LogitsProcessorList([choose]))
    return steps


def search(model: Any, replies: Sequence[Reply], before_pass: Callable[[], None]) -> int:
    """Write the one reply by beam search, and hand it out when it is found; return the passes it took."""
    from transformers import LogitsProcessorList

    (reply,) = replies
    steps, width = 0, len(reply.prompt)
    walks: dict[tuple[int, ...], Walk | None] = {}

    def hold(written: Tensor, log_p_NV: Tensor) -> Tensor:
        nonlocal steps
        before_pass()
        steps += 1
        return (
            _penalised(reply, written, log_p_NV, width)
            if reply.walk is None
            else _held(reply, walks, written[:, width:].tolist(), _penalised(reply, written, log_p_NV, width))
        )

    found = _generate(model, replies, reply.settings.num_beams, LogitsProcessorList([hold]))
    for token in found[0, width:].tolist():
        if reply.finish_reason is None:
            reply.take(Choice(token))
    reply.end("length")
    return steps


def _penalised(reply: Reply, written: Tensor, log_p_NV: Tensor, width: int) -> Tensor:
    """Return the beams' scores with the reply's penalties."""
    settings = reply.settings
    counts_NV = torch.zeros_like(log_p_NV)
    counts_NV.scatter_add_(1, written[:, width:], torch.ones_like(written[:, width:], dtype=log_p_NV.dtype))
    if settings.repetition_penalty != 1:
        seen_NV = counts_NV > 0
        seen_NV[:, written[0, :width]] = True
        log_p_NV = repeat_less(log_p_NV, seen_NV, torch.tensor(settings.repetition_penalty).to(log_p_NV))
    return log_p_NV - settings.frequency_penalty * counts_NV - settings.presence_penalty * (counts_NV > 0)


def _held(
    reply: Reply, walks: dict[tuple[int, ...], Walk | None], beams: Sequence[Sequence[int]], log_p_NV: Tensor
) -> Tensor:
    """Return the beams' scores with nothing possible but what the constraint allows."""
    allowed_NV = torch.zeros(log_p_NV.shape, dtype=torch.bool)
    for row, written in enumerate(beams):
        stopped = next((place for place, token in enumerate(written) if token in reply.stop_ids), len(written))
        walk = reply.walk
        assert walk is not None
        for place in range(stopped):
            key = tuple(written[: place + 1])
            if key not in walks:
                walks[key] = _advanced(walk, written[place])
            found = walks[key]
            if found is None:
                break
            walk = found
        else:
            allowed = torch.from_numpy(reply.allowed_at(walk))
            allowed_NV[row, : len(allowed)] = allowed
        if not allowed_NV[row].any():  # complete, and the model has no token to say so: any will do, it is cut off
            allowed_NV[row] = True
    return log_p_NV.masked_fill(~allowed_NV.to(log_p_NV.device), -torch.inf)


def _advanced(walk: Walk, token: int) -> Walk | None:
    """Return the walk after *token*; None for a beam that only fills up the search where fewer are possible."""
    try:
        return walk.advance(token)
    except ValueError:
        return None


def _generate(model: Any, replies: Sequence[Reply], beams: int, processors: Any) -> Tensor:
    """Run ``generate`` until all replies are finished, without any habit of the model's own generation settings."""
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class Finished(StoppingCriteria):
        """Ends each row when its reply is."""

        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002 - the base's
            if len(replies) == len(input_ids):
                ended = [reply.finish_reason is not None for reply in replies]
            else:
                ended = [replies[0].finish_reason is not None] * len(input_ids)
            return torch.tensor(ended, device=input_ids.device)

    stops = sorted({token for reply in replies for token in reply.stop_ids}) if beams > 1 else None
    config = GenerationConfig(
        max_new_tokens=max(reply.most for reply in replies),
        num_beams=beams,
        do_sample=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
    )
    tokens = torch.tensor([list(reply.prompt) for reply in replies], device=model.device)
    with _no_defaults(model), torch.no_grad():
        return torch.as_tensor(
            model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([Finished()]),
            )
        )


def _no_defaults(model: Any) -> Any:
    """Return a context in which the model has no generation settings of its own, which would fill in ours."""
    from contextlib import contextmanager

    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model

    @contextmanager
    def without() -> Any:
        own, base.generation_config = base.generation_config, GenerationConfig()
        try:
            yield
        finally:
            base.generation_config = own

    return without()
