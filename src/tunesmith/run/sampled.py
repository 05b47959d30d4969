"""What writing answers holds beside the weights: the model's own code with a cache, run without numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.outline import Outline
    from tunesmith.run.plan import Plan
    from tunesmith.run.prepared import Prepared, Split
    from tunesmith.stages._online import AbstractOnline


@dataclass(frozen=True)
class Written:
    """Answers that are written together, all to the longest length that they may have."""

    prompts: int
    answers: int
    """To each prompt."""
    width: int
    """Tokens of the longest prompt."""
    longest: int
    """Tokens of the longest answer."""
    filled: bool
    """Whether shorter prompts are filled up, so that attention has a mask."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.prompts * self.answers

    @property
    def tokens(self) -> int:
        """Tokens that the cache comes to hold."""
        return self.rows * (self.width + self.longest)


def written_together(plan: Plan, prepared: Prepared) -> Written:
    """Return the most answers that the online stage of *plan* writes at once: to learn from, or to be judged by."""
    recipe, stage = plan.recipe, online_stage(plan.recipe)
    at_once, count = stage.sampling.batch_size, stage.num_generations
    prompts = min(recipe.schedule.batch_size, max(1, at_once // count), len(prepared.train.examples))
    found = [_written(prepared.train, prompts, count, stage)]
    if prepared.validation is not None and stage.reward_scores and recipe.evaluation.examples:
        prompts = min(recipe.evaluation.examples, at_once, len(prepared.validation.examples))
        found.append(_written(prepared.validation, prompts, 1, stage))
    return max(found, key=lambda each: each.tokens)


def _written(split: Split, prompts: int, answers: int, stage: AbstractOnline) -> Written:
    lengths = [int(values[0]) for values in split.examples.values]
    filled = prompts > 1 and min(lengths) < max(lengths)
    return Written(prompts, answers, max(lengths), stage.sampling.max_new_tokens, filled)


def online_stage(recipe: Recipe) -> AbstractOnline:
    """Return the stage of *recipe*, which learns from answers of its own."""
    return cast("AbstractOnline", recipe.stage)


def writes_here(recipe: Recipe) -> bool:
    """Say whether the model that trains writes answers to learn from; a server may write them for it."""
    return recipe.stage.online and online_stage(recipe).sampling.server is None


def keeps_start(recipe: Recipe) -> bool:
    """Say whether the weights that train are kept as they were at the start, to be compared with."""
    return recipe.stage.online and online_stage(recipe).asks_start


def bound_sampling(written: Written, features: int, vocabulary: int) -> dict[str, int]:
    """Return what no model takes more than, whose matrices give *features* numbers for each token."""
    # float32 throughout; keys and values are among the features, and no row has more than these in sampling.choose
    return {"sampling cache": 4 * features * written.tokens, "sampling": 40 * vocabulary * written.rows}


def trace_sampling(outline: Outline, plan: Plan, prepared: Prepared) -> dict[str, dict[str, int]]:
    """Return what is there as prompts are read, and as the last token of each answer is written, in bytes by name.

    The weights of *outline* must be its tracer's.  Raises what torch raises where the model's code cannot run so.
    """
    import numpy as np

    from tunesmith.engine.phantom import draw_out

    written = written_together(plan, prepared)
    outline.model.eval()
    found = draw_out(outline.base, lambda: np.array(_measure(outline, plan, written), np.float64))
    read, reading, cache, step = (max(0, round(each)) for each in found)
    return {
        "sampling, prompts being read": {"sampling cache": read, "sampling": reading},
        "sampling, the last tokens": {"sampling cache": cache, "sampling": step},
    }


def _measure(outline: Outline, plan: Plan, written: Written) -> tuple[int, int, int, int]:
    """Return the bytes of the cache and the most beside it, as prompts are read and as the last token is written."""
    import torch

    from tunesmith.generation.rollouts import choose

    tracer, dtype = outline.tracer, None if plan.precision == "float32" else getattr(torch, plan.precision)
    rows, before = written.rows, written.width + max(0, written.longest - 2)
    tracer.restart_peak()
    start = tracer.alive
    # as in sampling, where casts of weights are kept while autocast is on
    with tracer, torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        cache: Any = _run(outline.base, written, written.prompts, written.width).past_key_values
        read = _held(cache)
        reading = tracer.restart_peak() - start - read
        if written.answers > 1:
            cache.batch_repeat_interleave(written.answers)
        _lengthen(cache, rows, before - written.width)
        tracer.restart_peak()
        out = _run(outline.base, written, rows, 1, cache, before)
        choose(out.logits[:, -1].float(), torch.zeros(rows, dtype=torch.float64), online_stage(plan.recipe).sampling)
        held = _held(out.past_key_values)
        return read, reading, held, tracer.restart_peak() - start - held


def _run(base: Any, written: Written, rows: int, tokens: int, cache: Any = None, seen: int = 0) -> Any:
    """Run *tokens* of each row after those *seen*, as generation/rollouts.py does."""
    from inspect import signature

    import torch

    mask = torch.ones(rows, seen + tokens, dtype=torch.long)
    mask[0, 0] = 0
    given = {
        "input_ids": torch.zeros(rows, tokens, dtype=torch.long),
        "attention_mask": mask if written.filled else None,
        "position_ids": torch.arange(seen, seen + tokens)[None].expand(rows, tokens),
        "past_key_values": cache,
        "logits_to_keep": torch.tensor([tokens - 1]),
    }
    takes = signature(base.forward).parameters
    return base(**{name: value for name, value in given.items() if name in takes}, use_cache=True)


def _lengthen(cache: Any, rows: int, tokens: int) -> None:
    """Add so many *tokens* to each row of *cache*."""
    for at, layer in enumerate(cache.layers):
        if (keys := getattr(layer, "keys", None)) is not None:  # not a layer without attention
            size, values = (rows, keys.shape[1], tokens), layer.values
            cache.update(keys.new_empty(*size, keys.shape[-1]), values.new_empty(*size, values.shape[-1]), at)


def _held(cache: Any) -> int:
    """Return the bytes of *cache*: keys and values, or whatever states its layers keep."""
    import torch

    tensors = [each for layer in cache.layers for each in vars(layer).values() if isinstance(each, torch.Tensor)]
    return sum(each.untyped_storage().nbytes() for each in tensors)
