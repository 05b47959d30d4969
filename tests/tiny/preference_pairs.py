"""What the tests of preference training share: pairs, and examples of which the reference was asked."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import torch

from tunesmith.data.conversation import Conversation, Message
from tunesmith.engine.example_table import ExampleTable
from tunesmith.engine.likelihoods import Alone, Likelihoods, complete
from tunesmith.engine.model import PackModel
from tunesmith.engine.objective import pass_loss
from tunesmith.engine.pack import build_packs

WORDS = ["mist", "hill", "pine", "moon", "boats", "rain", "dew"]


def make_pairs(count: int) -> list[dict[str, str]]:
    """Pairs of uneven length under one long prompt: the chosen answer repeats the words, the rejected one others."""
    rows = []
    for number in range(count):
        words = " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 2 + number % 2))
        other = " ".join(WORDS[(number * step + 3) % len(WORDS)] for step in range(1, 2 + number % 2))
        question = f"Write the words again, all of them in order: {words}"
        rows.append({"prompt": question, "chosen": f"{words}.", "rejected": f"{other} {number}!"})
    return rows


def write_pairs(folder: Path) -> dict[str, str]:
    """Files of 16 training pairs and 4 for validation."""
    rows = make_pairs(20)
    for name, part in (("train", rows[:16]), ("validation", rows[16:])):
        (folder / f"{name}.json").write_text(json.dumps(part), "utf-8")
    return {name: str(folder / f"{name}.json") for name in ("train", "validation")}


def conversations(rows) -> list[Conversation]:
    """The rows as pairs."""
    return [
        Conversation(
            (Message("user", row["prompt"]), Message("assistant", row["chosen"])),
            rejected=(Message("assistant", row["rejected"]),),
            shared=1,
        )
        for row in rows
    ]


def examples_of(stage, given, template, start) -> list:
    """The stage's examples of the conversations, the reference asked."""
    made = [example for each in stage.examples(given, template, 512) for example in each]
    if stage.reference_model() is None:
        return made
    values = stage.prepare(made, range(len(made)), asking(start))
    table = ExampleTable.of(made)
    table = ExampleTable(**{**{name: getattr(table, name) for name in table.__slots__}, "values": tuple(values)})
    return table[:]


def asking(model) -> Likelihoods:
    return Likelihoods(PackModel(model, model).eval(), Alone(torch.device("cpu")), "prefix", 4096)


def step(stage, model, examples, layout: str = "prefix", budget: int = 250):
    """Loss, gradients and parts of one optimizer step over *examples*, in several passes."""
    model.zero_grad()
    packed = PackModel(model, model).eval()
    packs = build_packs(examples, layout, budget)
    examples, packs = complete(stage, examples, packs, examples, asking(model))
    total, parts = 0.0, defaultdict(float)
    for pack in packs:
        loss = pass_loss(packed, stage, pack.to("cpu"))
        loss.total.backward()
        total += float(loss.total.detach())
        for name, value in loss.parts.items():
            parts[name] += float(value)
    size = stage.size(examples)
    gradients = {name: p.grad.clone() / size for name, p in model.named_parameters() if p.grad is not None}
    return total / size, gradients, {name: value / size for name, value in parts.items()}


def distance(found, expected) -> float:
    """How far gradients are apart, relative to their norm."""
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (apart / sum(float(g.square().sum()) for g in expected.values())) ** 0.5
