"""The prefix forest: every trained token is predicted once, from exactly its own prefix, in every layout."""

from collections import Counter
from itertools import chain, cycle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.engine.example import Example
from tunesmith.engine.pack import SHORTEST_SHARED, Pack, build_packs, split_examples
from tunesmith.templates.tokens import TokenSequence

LAYOUTS = ("prefix", "packed", "padded")

# no deadline: a busy machine is no failure
thorough = settings(max_examples=150, deadline=None)
quick = settings(max_examples=30, deadline=None)


@st.composite
def examples_that_begin_alike(draw) -> list[Example]:
    """Examples of one to three sequences, each a chain of chunks that all share: prefixes of every length meet."""
    letters = st.integers(0, draw(st.integers(0, 3)))
    chunks = draw(st.lists(st.lists(letters, min_size=1, max_size=11), min_size=1, max_size=4))
    texts = st.lists(st.sampled_from(chunks), min_size=1, max_size=4).map(lambda parts: [*chain(*parts)])
    weights = cycle(draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=9)))
    groups = draw(st.lists(st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=8))
    return [Example(tuple(TokenSequence.of(t, [next(weights) for _ in t]) for t in group)) for group in groups]


layouts = st.sampled_from(LAYOUTS)
budgets = st.integers(1, 150) | st.just(10_000)


def one(*texts: str) -> Example:
    """An example of these texts, a character a token, all of them trained."""
    return Example(tuple(TokenSequence.trained_from([ord(c) for c in text], 1) for text in texts))


def visible(pack: Pack, at: int) -> np.ndarray:
    """The indices that the token at index *at* sees: the definition of a pack."""
    earlier = np.arange(at + 1)
    return earlier[pack.reach[: at + 1] > at]


def sequences_of(pack: Pack) -> list[TokenSequence]:
    return [sequence for each in pack.examples for sequence in each.sequences]


def real_tokens(pack: Pack) -> np.ndarray:
    """The indices that are not filling."""
    return np.flatnonzero(pack.reach)


@thorough
@given(examples_that_begin_alike(), layouts, budgets)
@example([one("abcdefghij"), one("abcdefghij")], "prefix", 10_000)
@example([one("abcdefghij"), one("abcdefghijkl"), one("abcdefghijklmnopqrst")], "prefix", 10_000)
@example([one("abcdefghijkl", "abcdefgh"), one("a")], "prefix", 10_000)
@example([one("abcdefghij1"), one("abcdefghijk2"), one("abcdefghijkl3")], "prefix", 10_000)
def test_each_trained_token_is_predicted_once_from_exactly_its_own_prefix(examples, layout, budget):
    for pack in build_packs(examples, layout, budget):
        sequences = sequences_of(pack)
        expected = Counter(
            (number, at, int(s.tokens[at]), float(s.weight[at]))
            for number, s in enumerate(sequences)
            for at in np.flatnonzero(s.weight)
        )
        found: Counter[tuple[int, int, int, float]] = Counter()
        for source, target, weight, number in zip(pack.source, pack.target, pack.weight, pack.sequence, strict=True):
            path = visible(pack, source)
            assert list(range(len(path))) == pack.depth[path].tolist()
            assert sequences[number].tokens[: len(path)].tolist() == pack.tokens[path].tolist()
            found[int(number), len(path), int(target), float(weight)] += 1

        assert expected == found


@thorough
@given(examples_that_begin_alike(), layouts, budgets)
def test_no_token_sees_what_is_not_its_own_prefix(examples, layout, budget):
    for pack in build_packs(examples, layout, budget):
        prefixes = {tuple(s.tokens[:n].tolist()) for s in sequences_of(pack) for n in range(1, len(s) + 1)}
        spelled = set()
        for at in real_tokens(pack):
            path = visible(pack, at)
            assert list(range(len(path))) == pack.depth[path].tolist()
            spelled.add(tuple(pack.tokens[path].tolist()))

        assert prefixes == spelled


@quick
@given(examples_that_begin_alike(), budgets)
def test_filling_sees_nothing_and_nothing_sees_it(examples, budget):
    for pack in build_packs(examples, "padded", budget):
        filling = set(range(len(pack.tokens))) - set(real_tokens(pack).tolist())
        for at in range(len(pack.tokens)):
            path = visible(pack, at).tolist()

            assert not filling & set(path)
            assert (at in filling) == (path == [])


@quick
@given(examples_that_begin_alike(), layouts, budgets)
def test_every_example_is_in_exactly_one_pack(examples, layout, budget):
    packs = build_packs(examples, layout, budget)

    assert Counter(map(id, examples)) == Counter(id(e) for pack in packs for e in pack.examples)


@quick
@given(examples_that_begin_alike(), layouts, budgets)
def test_no_weight_is_lost(examples, layout, budget):
    packs = build_packs(examples, layout, budget)

    # the weights are multiples of a quarter: their sums are exact
    assert sum(s.weight_total for e in examples for s in e.sequences) == sum(float(p.weight.sum()) for p in packs)


@quick
@given(examples_that_begin_alike(), budgets)
def test_packing_fills_nothing_up_and_sharing_never_adds_a_token(examples, budget):
    tokens = sum(e.tokens for e in examples)
    (shared,) = build_packs(examples, "prefix", 10_000)

    assert tokens == sum(len(p.tokens) for p in build_packs(examples, "packed", budget))
    assert len(shared.tokens) <= tokens
    assert sum(len(p.tokens) for p in build_packs(examples, "prefix", budget)) <= tokens
    assert tokens == sum(len(real_tokens(p)) for p in build_packs(examples, "padded", budget))


@quick
@given(examples_that_begin_alike(), st.sampled_from(["packed", "padded"]), budgets)
def test_a_pack_keeps_to_its_budget_unless_one_example_alone_is_longer(examples, layout, budget):
    for pack in build_packs(examples, layout, budget):
        assert len(pack.tokens) <= budget or len(pack.examples) == 1


@quick
@given(examples_that_begin_alike(), budgets)
def test_a_shared_pack_keeps_to_its_budget_but_for_branches_too_short_to_share(examples, budget):
    for pack in build_packs(examples, "prefix", budget):
        slack = (SHORTEST_SHARED - 1) * len(sequences_of(pack))

        assert len(pack.tokens) <= budget + slack or len(pack.examples) == 1


@pytest.mark.parametrize(("shared", "once"), [(SHORTEST_SHARED - 1, False), (SHORTEST_SHARED, True), (40, True)])
def test_a_common_prefix_is_laid_out_once_from_the_length_that_pays(shared, once):
    prefix = "p" * shared
    (pack,) = build_packs([one(f"{prefix}{tail}") for tail in ("ax", "by", "cz")], "prefix", 10_000)
    expected = shared + 3 * 2 if once else 3 * (shared + 2)

    assert expected == len(pack.tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pack_may_be_as_big_as_its_budget_and_no_bigger(layout):
    examples = [one("abcde"), one("fghij")]

    assert len(build_packs(examples, layout, 10)) == 1
    assert len(build_packs(examples, layout, 9)) == 2


def test_a_duplicate_adds_predictions_but_no_token():
    (pack,) = build_packs([one("abcdefghij")] * 3, "prefix", 10_000)

    assert len("abcdefghij") == len(pack.tokens)
    assert 3 * len("bcdefghij") == len(pack.target)


def test_sequences_of_one_example_share_with_each_other():
    (pack,) = build_packs([one("a question: yes", "a question: no", "a question: ")], "prefix", 10_000)

    assert len("a question: ") + len("yes") + len("no") == len(pack.tokens)
    assert {0, 1, 2} == set(pack.sequence.tolist())


@quick
@given(examples_that_begin_alike(), st.randoms())
def test_what_is_shared_does_not_depend_on_the_order_of_the_examples(examples, random):
    (expected,) = build_packs(examples, "prefix", 10_000)
    random.shuffle(examples)
    (found,) = build_packs(examples, "prefix", 10_000)

    assert expected.tokens.tolist() == found.tokens.tolist()


def test_sequences_of_several_examples_share_crosswise():
    examples = [one("aaaaaaaaaa1", "bbbbbbbbbb1"), one("aaaaaaaaaa2", "bbbbbbbbbb2")]
    (pack,) = build_packs(examples, "prefix", 10_000)

    assert 2 * len("aaaaaaaaaa12") == len(pack.tokens)


def test_those_that_begin_alike_go_into_one_pack():
    examples = [one(f"{letter * 10}{tail}") for tail in "123" for letter in "ab"]
    packs = build_packs(examples, "prefix", 13)

    assert [{ord("a")}, {ord("b")}] == [set(p.tokens[p.depth == 0].tolist()) for p in packs]


@quick
@given(examples_that_begin_alike(), st.integers(1, 5))
def test_processes_share_the_examples_without_loss(examples, parts):
    shares = split_examples(examples, parts)

    assert parts == len(shares)
    assert Counter(map(id, examples)) == Counter(id(e) for share in shares for e in share)


@quick
@given(examples_that_begin_alike(), st.integers(1, 5))
def test_processes_get_about_as_many_tokens_each(examples, parts):
    total, longest = sum(e.tokens for e in examples), max(e.tokens for e in examples)

    for share in split_examples(examples, parts):
        assert sum(e.tokens for e in share) <= total / parts + longest


def test_neighbours_stay_on_one_process():
    examples = [one(f"{letter * 10}{tail}") for tail in "123" for letter in "ab"]
    shares = split_examples(examples, 2)

    assert [{"a"}, {"b"}] == [{chr(e.sequences[0].tokens[0]) for e in share} for share in shares]
