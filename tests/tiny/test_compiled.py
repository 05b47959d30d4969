"""Compiled blocks train as eager ones do, with few graphs, and give way to them where they cannot."""

import json

import pytest
import torch
from torch._dynamo.utils import counters

from tunesmith.core.settings import cpp_compiler
from tunesmith.engine import compiled
from tunesmith.engine.attention import opaque
from tunesmith.run.train import train

needs_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler here")


@needs_compiler
def test_compiled_blocks_train_as_eager_ones_with_two_graphs(make_recipe, measured, trained_weights, monkeypatch):
    """Packs of different lengths, dropout, validation and generation between: same losses, no graph besides two."""
    wanted = {"schedule": {"steps": 3}, "evaluation": {"examples": 1, "every": 2, "generation": {"max_new_tokens": 4}}}
    eager = train(make_recipe("eager", **wanted)).folder
    lengths = set()
    counters.clear()
    mark = compiled._mark_length
    monkeypatch.setattr(compiled, "_mark_length", lambda value, length: (lengths.add(length), mark(value, length)))
    fast = train(make_recipe("fast", engine={"compile": True}, **wanted)).folder

    assert json.loads((fast.path / "plan.json").read_text("utf-8"))["settled"]["compile"] is True
    assert len(lengths) > 1
    assert counters["stats"]["unique_graphs"] <= 2
    for one, other in zip(measured(fast.path), measured(eager.path), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert one[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), name
    expected = trained_weights(eager.path)
    found = trained_weights(fast.path)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-4)


def test_blocks_that_do_not_compile_stay_eager_with_a_notice(make_recipe, monkeypatch):
    """Whatever the compiler says becomes one line in the plan; the run trains."""

    def refuse(*_, **__):
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    told = []
    outcome = train(make_recipe(engine={"compile": True}, schedule={"steps": 1}), told.append)

    plan = json.loads((outcome.folder.path / "plan.json").read_text("utf-8"))
    said = "the blocks do not compile (RuntimeError: no such luck): eager blocks instead"
    assert outcome.complete
    assert plan["settled"]["compile"] is False
    assert said == plan["why"]["compile"]
    assert said in plan["notices"]
    assert any(event.get("text") == said for event in told)


def test_blocks_that_disagree_are_switched_off(make_recipe, monkeypatch):
    """Gradients that are off by a tenth show before the first step."""
    monkeypatch.setattr(torch, "compile", lambda plain, **_: lambda *a, **k: plain(*a, **k) * 1.1)
    outcome = train(make_recipe(engine={"compile": True}, schedule={"steps": 1}))

    plan = json.loads((outcome.folder.path / "plan.json").read_text("utf-8"))
    assert plan["settled"]["compile"] is False
    assert "disagree" in plan["why"]["compile"]


def test_without_a_compiler_the_plan_says_so(make_recipe, monkeypatch):
    monkeypatch.setattr("tunesmith.run.compiling.cpp_compiler", lambda: None)
    told = []
    outcome = train(make_recipe(engine={"compile": True}, schedule={"steps": 1}), told.append)

    assert outcome.complete
    assert any("this machine has none" in event.get("text", "") for event in told)


def test_the_opaque_operator_is_the_autograd_function():
    """Two packs in turn: a plan that was kept for one is never used for the other."""
    from tunesmith.engine.attention.segments import plan_forest, segment_attention

    torch.manual_seed(0)
    for reach in ([6, 6, 6, 6, 4, 6], [3, 3, 3, 6, 6, 6]):
        reach_N = torch.tensor([6, 6, 4, 4, 6, 6] if reach[3] == 6 and reach[0] == 6 else reach)
        depth_N = torch.tensor([0, 1, 2, 3, 2, 3]) if int(reach_N[0]) == 6 else torch.tensor([0, 1, 2, 0, 1, 2])
        mask = torch.stack([reach_N, depth_N, torch.zeros(6).long(), torch.zeros(6).long()])[None, None]
        given = [torch.randn(6, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
        weights = torch.randn(6, 4, 8)
        expected = segment_attention(*given, plan_forest(reach_N, depth_N), 0.3)
        found = opaque.segment_attention(*given, mask, 0.3)[0]

        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        pairs = zip(*(torch.autograd.grad((o * weights).sum(), given) for o in (found, expected)), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=0, atol=0)
