"""How likely a model finds whole sequences as it is: without gradients, without dropout, over all processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.engine.model import pack_arguments
from tunesmith.engine.pack import build_packs, split_examples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunesmith.engine.example import Example
    from tunesmith.engine.model import PackModel
    from tunesmith.engine.objective import Objective
    from tunesmith.engine.pack import Layout, Pack


@dataclass(frozen=True)
class Alone:
    """Stands for accelerate where one process asks a model by itself, in whatever precision it was set to."""

    device: torch.device
    num_processes: int = 1
    process_index: int = 0

    def autocast(self) -> AbstractContextManager[None]:
        """Return what a forward pass runs in."""
        return nullcontext()


@dataclass(frozen=True)
class Likelihoods:
    """Gives log-probabilities of sequences under *model*."""

    model: PackModel
    """The bare one: wrapped by accelerate it would talk at every pass, and processes may have different numbers."""
    accelerator: Any
    layout: Layout
    tokens_per_pass: int

    def __call__(self, examples: Sequence[Example]) -> list[tuple[float, ...]]:
        """Return the weighted log-probability of each sequence of each of *examples*, the same on every process."""
        return self._each(examples, self._sums)

    def likeliest(self, examples: Sequence[Example], count: int) -> list[tuple[Any, Any]]:
        """Return, of each example's trained tokens, the *count* likeliest ``[t, k]`` and their log-probabilities.

        Those of its sequences stand one after another, as the tokens do.
        """
        from tunesmith.engine.divergence import most_likely

        def ask(pack: Pack) -> list[tuple[Example, tuple[Any, Any]]]:
            tensors = pack.to(self.accelerator.device)
            given = {k: v for k, v in pack_arguments(tensors).items() if k != "target"}
            order = torch.argsort(tensors.sequence, stable=True)
            ids, log_p = (each[order].cpu().numpy() for each in most_likely(self.model.readout(**given), count))
            ends = list(accumulate(sum(s.trained for s in example.sequences) for example in pack.examples))
            spans = zip(pack.examples, [0, *ends], ends, strict=False)
            return [(example, (ids[start:end], log_p[start:end])) for example, start, end in spans]

        return self._each(examples, ask)

    def _each(self, examples: Sequence[Example], ask: Callable[[Pack], list[tuple[Example, Any]]]) -> list[Any]:
        """Return what *ask* finds of each of *examples* in packs of them, the same on every process."""
        numbers = {id(example): number for number, example in enumerate(examples)}
        assert len(numbers) == len(examples), "an example stands here once"
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        part = split_examples(examples, world)[rank]
        trained = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                packs = build_packs(part, self.layout, self.tokens_per_pass) if part else []
                found = [(numbers[id(example)], sums) for pack in packs for example, sums in ask(pack)]
        finally:
            self.model.train(trained)
        if world > 1:
            from accelerate.utils import gather_object

            found = gather_object(found)
        return [sums for _, sums in sorted(found, key=itemgetter(0))]

    def _sums(self, pack: Pack) -> list[tuple[Example, tuple[float, ...]]]:
        tensors = pack.to(self.accelerator.device)
        each = self.model(**pack_arguments(tensors)).double() if tensors.target.numel() else tensors.weight.double()
        count = sum(len(example.sequences) for example in pack.examples)
        sums = each.new_zeros(count).index_add(0, tensors.sequence, tensors.weight * each).tolist()
        out, at = [], 0
        for example in pack.examples:
            out.append((example, tuple(sums[at : at + len(example.sequences)])))
            at += len(example.sequences)
        return out


def complete(
    objective: Objective,
    chosen: Sequence[Example],
    packs: Sequence[Pack],
    data: Sequence[Example],
    likelihoods: Likelihoods,
) -> tuple[list[Example], list[Pack]]:
    """Return the examples that a loss is taken over, and their *packs*, with what follows from all of them together.

    They were *chosen* from *data*; see ``Stage.complete``.
    """
    whole = list(chosen)
    completed = objective.complete(whole, data, likelihoods)
    if completed is whole:
        return whole, list(packs)
    new = {id(before): after for before, after in zip(whole, completed, strict=True)}
    return completed, [replace(pack, examples=tuple(new[id(e)] for e in pack.examples)) for pack in packs]
