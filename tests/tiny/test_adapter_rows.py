"""What adapters add to a layer: the same whichever way a pass of different rows takes."""

from __future__ import annotations

import pytest
import torch

from tunesmith.generation import adapter_rows
from tunesmith.generation.adapter_rows import Layer, arrange

INPUTS, OUTPUTS = 24, 40
# ranks of four adapters in the layer's matrices
A, B, C, D = range(3), range(3, 6), range(6, 14), range(14, 16)
KINDS = {
    "balanced": [((each, 1.0),) for each in (A, B, A, B, B, A)],
    "ranks that differ, and the base": [((A, 1.0),), (), ((C, 1.0),), ((D, 0.5),), ((C, 1.0),), (), ((A, 1.0),)],
    "adapters that lie apart": [((A, 1.0),), ((D, 1.0),), ((A, 1.0),), ((D, 1.0),)],
    "one adapter beside many of another": [*[((B, 1.0),)] * 7, ((A, 1.0),)],
    "blends": [((A, 0.3), (C, 0.6)), ((B, 1.0),), ((A, 0.3), (C, 0.6)), ((A, 2.0),), ((A, -1.0),), ()],
    "one for all": [((C, 0.7),)],
    "one and the base": [((C, 1.0),), (), ()],
}


def make_layer() -> Layer:
    torch.manual_seed(0)
    return Layer(torch.randn(16, INPUTS), torch.randn(16, OUTPUTS))


def one_by_one(layer: Layer, rows, inputs: torch.Tensor) -> torch.Tensor:
    """Return what each row's adapters make of it, in float64."""
    rows = rows * len(inputs) if len(rows) == 1 else rows
    added = torch.zeros(*inputs.shape[:-1], OUTPUTS, dtype=torch.float64)
    for place, row in enumerate(rows):
        for ranks, share in row:
            down, up = layer.down[ranks.start : ranks.stop].double(), layer.up[ranks.start : ranks.stop].double()
            added[place] += share * inputs[place].double() @ down.T @ up
    return added


@pytest.mark.parametrize("bearable", [0, 1 << 40], ids=["moving", "stacked"])
@pytest.mark.parametrize("width", [1, 2, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_adds_what_each_row_has_alone(monkeypatch, kind, width, bearable):
    monkeypatch.setattr(adapter_rows, "_IN_VAIN_CPU", bearable)
    rows, layer = KINDS[kind], make_layer()
    inputs = torch.randn(max(len(rows), 2), width, INPUTS)
    output = torch.randn(*inputs.shape[:-1], OUTPUTS)
    expected = output.double() + one_by_one(layer, rows, inputs)
    untouched = output[rows.index(())].clone() if () in rows else None
    ways = arrange(rows, layer.down)
    for factor in (1, 2):  # again: what was kept of the layer is of no other pass
        again = output.clone()
        ways.add(layer, factor * inputs, again)
        torch.testing.assert_close(again.double(), output + factor * (expected - output), rtol=1e-5, atol=1e-4)

    if untouched is not None:
        assert torch.equal(untouched, again[rows.index(())])


def test_each_way_is_taken_where_it_costs_least(monkeypatch):
    """Few numbers are stacked, short rows grouped, long rows get their factors; uneven groups are never filled up."""
    layer, taken = make_layer(), []
    for name in ("_Stacked", "_Grouped", "_Picked"):
        way = getattr(adapter_rows, name)
        monkeypatch.setattr(way, "add", lambda self, *_: taken.append(type(self).__name__))
    for kind, width, bearable in [
        ("balanced", 1, 1 << 21),
        ("balanced", 1, 0),
        ("balanced", 30, 0),
        ("one adapter beside many of another", 1, 0),
        ("one adapter beside many of another", 30, 0),
        ("one for all", 30, 0),
    ]:
        monkeypatch.setattr(adapter_rows, "_IN_VAIN_CPU", bearable)
        rows = KINDS[kind]
        output = torch.zeros(len(rows), width, OUTPUTS)
        arrange(rows, layer.down).add(layer, torch.zeros(len(rows), width, INPUTS), output)

    assert taken == ["_Stacked", "_Grouped", "_Picked", "_Stacked", "_Picked", "_Stacked"]


def test_what_is_kept_of_a_layer_goes_when_its_adapters_change():
    rows, layer = KINDS["adapters that lie apart"], make_layer()
    inputs = torch.randn(len(rows), 1, INPUTS)
    arrange(rows, layer.down).add(layer, inputs, torch.zeros(len(rows), 1, OUTPUTS))
    layer.change(2 * layer.down, layer.up)
    output = torch.zeros(len(rows), 1, OUTPUTS)
    arrange(rows, layer.down).add(layer, inputs, output)

    torch.testing.assert_close(output.double(), one_by_one(layer, rows, inputs), rtol=1e-5, atol=1e-4)
