"""What the tests of preference training share: pairs, and examples of which the reference was asked."""

from __future__ import annotations

import torch

from tunesmith.data.conversation import Conversation, Message
from tunesmith.engine.example_table import ExampleTable
from tunesmith.engine.likelihoods import Alone, Likelihoods
from tunesmith.engine.model import PackModel

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
