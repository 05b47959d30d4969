"""Answers from a model: many prompts at once, or one as it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tunesmith.generation.settings import Generation


def answer_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    stop_ids: Sequence[int],
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """Return the new token ids for each prompt, in order, without the end token that closed them.

    Prompts of similar length share a batch, filled up on the left; *progress* is told how many are done.
    """
    torch.manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        width = max(1, max(len(prompts[i]) for i in batch))
        tokens = torch.full((len(batch), width), stop_ids[0] if stop_ids else 0, device=model.device)
        mask = torch.zeros_like(tokens)
        for row, index in enumerate(batch):
            prompt = torch.tensor(list(prompts[index]), dtype=torch.long)
            tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
        options = _options(stop_ids, settings)
        with torch.no_grad():
            written = model.generate(input_ids=tokens, attention_mask=mask, **options)[:, width:]
        for row, index in enumerate(batch):
            answers[index] = until_stop(written[row].tolist(), stop_ids)
        progress(min(start + settings.batch_size, len(order)))
    return answers


def stream_answer(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    settings: Generation,
    *,
    stop_ids: Sequence[int],
    keep_control: bool = False,
) -> Iterator[str]:
    """Yield the answer to one prompt piece by piece, as it is written; *keep_control* leaves control tokens in it."""
    from threading import Thread

    from transformers import TextIteratorStreamer

    streamer: Any = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=not keep_control)
    tokens = torch.tensor([list(prompt)], device=model.device)
    options = _options(stop_ids, settings)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with torch.no_grad():
                model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), streamer=streamer, **options)
        except BaseException as error:
            failures.append(error)
            streamer.end()
            raise

    writer = Thread(target=write, daemon=True)
    writer.start()
    yield from streamer
    writer.join()
    if failures:
        raise failures[0]


def until_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Return *tokens* before the first stop token."""
    stops = set(stop_ids)
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))])


def _options(stop_ids: Sequence[int], settings: Generation) -> dict[str, Any]:
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    stops = list(stop_ids) or None
    # what is left out is taken from the model's own generation settings, whose habits the caller did not ask for
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=stops,
        pad_token_id=stops[0] if stops else 0,
        **neutral,
        **sampling,
    )
    return {"generation_config": config}
