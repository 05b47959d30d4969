"""The passes that a run will take, seen on the packs of a few of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.engine.order import ExampleOrder
from tunesmith.engine.pack import build_packs, split_examples

if TYPE_CHECKING:
    from tunesmith.engine.pack import Pack
    from tunesmith.run.plan import Plan
    from tunesmith.run.prepared import Prepared

# steps whose packs are built to find the largest and the usual one
_SAMPLED_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The passes of some optimizer steps."""

    largest: Pack
    most: int
    """Passes of a step."""
    tokens_fed: float
    follows: bool
    """Whether the largest one was seen to find gradients of passes before it …"""
    following: int
    """… and else the tokens of the largest that did."""
    compared: Pack
    """What attention is compared on before the first step, whole and without checkpoints …"""
    checked: Pack
    """… and what gradients are checked on."""
    usual: Pack
    """One of the usual size: more tokens are in larger ones than are in smaller ones, by as little as can be."""
    sizes: int
    """How many different numbers of tokens passes will have …"""
    alone: int
    """… and the sequences that are compared one by one before the first step."""


def look_at_passes(plan: Plan, prepared: Prepared) -> Passes:
    """Build the packs of a few steps, and of the longest example; return the largest and what is usual."""
    from tunesmith.engine.check import choose_examples, shortest_examples

    examples, recipe = prepared.train.examples, plan.recipe
    order = ExampleOrder(len(examples), recipe.schedule.batch_size, recipe.seed)
    steps = np.unique(np.linspace(0, plan.steps - 1, min(plan.steps, _SAMPLED_STEPS)).astype(int))
    packs: list[tuple[Pack, bool]] = []
    counts, fed = [], []
    for step in steps:
        batch = [examples[index] for index in order.batch(int(step))]
        chosen = [each for example in batch for each in recipe.stage.stand_ins(example, plan.tokens_per_pass)]
        parts = [part for part in split_examples(chosen, plan.processes) if part]
        local = [build_packs(part, plan.layout, plan.tokens_per_pass) for part in parts]
        packs += [(pack, at > 0) for each in local for at, pack in enumerate(each)]
        counts.append(max(map(len, local)))
        fed.append(sum(len(pack.tokens) for each in local for pack in each) / len(parts))
    lengths = np.diff(examples.sequence_start[examples.example_start])
    longest = recipe.stage.stand_ins(examples[int(lengths.argmax())], plan.tokens_per_pass)
    packs += [(pack, max(counts) > 1) for pack in build_packs(longest, plan.layout, plan.tokens_per_pass)]
    # predictions weigh too: each has a row of the loss
    largest, follows = max(packs, key=lambda each: (len(each[0].tokens), len(each[0].target), each[1]))
    following = max((len(pack.tokens) for pack, later in packs if later), default=0)
    compared, checked = (
        max(build_packs(few, plan.layout, 2**31), key=lambda pack: len(pack.tokens))  # one, but in layout single
        for few in (choose_examples(examples), shortest_examples(examples))
    )
    sizes = len({len(pack.tokens) for pack, _ in packs})
    seen = sizes * max(1.0, plan.steps / len(steps))  # new ones come as long as there are some
    others = {len(each) for example in choose_examples(examples) for each in example.sequences}
    by_size = sorted((pack for pack, _ in packs), key=lambda pack: len(pack.tokens))
    half = np.searchsorted(np.cumsum([len(pack.tokens) for pack in by_size]) * 2, sum(len(p.tokens) for p in by_size))
    usual = by_size[min(int(half), len(by_size) - 1)]
    return Passes(
        largest=largest,
        most=max(counts),
        tokens_fed=float(np.mean(fed)),
        follows=follows,
        following=following,
        compared=compared,
        checked=checked,
        usual=usual,
        sizes=round(min(seen, len(largest.tokens))),
        alone=len(others),
    )
