"""Examples in flat arrays are the examples they were made of."""

import itertools

import numpy as np
import pytest

from tunesmith.data.conversation import Origin
from tunesmith.engine.example import Example
from tunesmith.engine.example_table import ExampleTable
from tunesmith.templates.tokens import TokenSequence


def sequence(*tokens: int) -> TokenSequence:
    return TokenSequence.of(tokens, [0.5] * len(tokens))


EXAMPLES = [
    Example((sequence(1, 2, 3),), Origin("a.jsonl", 4)),
    Example((sequence(4, 5), sequence(6)), Origin("b.jsonl", 1), (0.25, "chosen")),
    Example((), Origin("a.jsonl", 9)),
    Example((sequence(7, 8, 9, 10),), Origin("b.jsonl", 2)),
]


def content(example: Example) -> tuple:
    parts = [(s.tokens.tolist(), s.weight.tolist()) for s in example.sequences]
    return parts, example.origin, example.values


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_table_holds_its_examples_in_order(count):
    assert list(map(content, EXAMPLES[:count])) == list(map(content, ExampleTable.of(EXAMPLES[:count])))


@pytest.mark.parametrize("cuts", [(0, 4), (0, 0, 4, 4), (0, 1, 2, 3, 4), (0, 2, 4)])
def test_joined_tables_hold_what_their_parts_hold(cuts):
    parts = [ExampleTable.of(EXAMPLES[begin:end]) for begin, end in itertools.pairwise(cuts)]

    assert list(map(content, EXAMPLES)) == list(map(content, ExampleTable.join(parts)))


def test_a_table_is_indexed_as_a_list_is():
    table = ExampleTable.of(EXAMPLES)

    assert content(EXAMPLES[-1]) == content(table[-1])
    assert list(map(content, EXAMPLES[::-2])) == list(map(content, table[::-2]))
    assert table[4:] == []
    with pytest.raises(IndexError):
        table[4]


def test_a_table_counts_what_it_holds():
    table = ExampleTable.of(EXAMPLES)

    assert len(table) == 4
    assert table.longest == 4
    assert table.highest_token == 10
    assert table.trained_tokens == 2 + 1 + 0 + 3
    empty = ExampleTable.of([])
    assert (len(empty), empty.longest, empty.highest_token, empty.trained_tokens) == (0, 0, -1, 0)


def test_looking_at_an_example_copies_no_token():
    table = ExampleTable.of(EXAMPLES)

    assert np.shares_memory(table.tokens, table[3].sequences[0].tokens)
    assert np.shares_memory(table.weight, table[3].sequences[0].weight)
