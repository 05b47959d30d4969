"""A step that runs out of memory is run again in smaller passes, and the run is the same run."""

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.core.errors import UserError
from tunesmith.engine.check import check_gradients
from tunesmith.engine.example import Example
from tunesmith.engine.loop import TrainingLoop
from tunesmith.engine.model import PackModel
from tunesmith.run.train import train
from tunesmith.templates.tokens import TokenSequence

LARGEST = 200
_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture
def small_memory(monkeypatch) -> list[int]:
    """Let every pass of more than 200 tokens run out of memory after some work; return the sizes that were tried."""
    tried: list[int] = []
    forward = TrainingLoop._forward

    def limited(self, pack):
        result = forward(self, pack)
        if torch.is_grad_enabled():
            tried.append(len(pack.tokens))
            if len(pack.tokens) > LARGEST:
                raise torch.OutOfMemoryError("out of memory")
        return result

    monkeypatch.setattr(TrainingLoop, "_forward", limited)
    return tried


def test_the_curve_is_the_one_of_enough_memory(make_recipe, measured, small_memory, monkeypatch):
    """Smaller passes are another layout, and layout changes nothing."""
    method = {"type": "lora", "rank": 4, "dropout": 0.0}
    engine = {"tokens_per_pass": 4096, "layout": "packed"}
    notices = []
    short = train(
        make_recipe("short", method=method, engine=engine),
        lambda event: notices.append(event["text"]) if event["kind"] == "notice" else None,
    )
    monkeypatch.undo()
    plenty = train(make_recipe("plenty", method=method, engine=engine))

    assert max(small_memory) > LARGEST
    assert any("memory ran out" in text for text in notices)
    found = [m["loss"] for m in measured(short.folder.path) if m["kind"] == "step"]
    expected = [m["loss"] for m in measured(plenty.folder.path) if m["kind"] == "step"]
    assert found == pytest.approx(expected, abs=1e-5)


def test_one_example_that_does_not_fit_is_an_error(make_recipe, monkeypatch):
    """There is no smaller pass than one example: the user is told what would help."""

    def always(self, pack):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(TrainingLoop, "_forward", always)

    with pytest.raises(UserError, match="memory ran out in a pass of"):
        train(make_recipe("run"))


def test_the_check_of_gradients_holds_one_copy_of_them(make_recipe):
    """Both forward passes are compared weight by weight: what the check takes is no more than what training takes."""
    torch.manual_seed(0)
    wide = {**_SIZES, "num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 512}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", vocab_size=400, **wide))
    model, size = PackModel(base, base), sum(parameter.nbytes for parameter in base.parameters())
    examples = [Example((TokenSequence.trained_from([*range(3, 9 + i)], 1),)) for i in range(4)]

    def check():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            assert check_gradients(model, make_recipe().stage, examples, "prefix", Accelerator(cpu=True)) == []
        alive = peak = 0
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            alive += event.nbytes()
            peak = max(peak, alive)
        return peak

    assert model.decoder is not None
    assert check() < 2 * size  # three copies were more than three times as much
    assert model.decoder is not None
    assert all(parameter.grad is None for parameter in base.parameters())


def test_a_weight_without_a_finite_gradient_is_named(make_recipe):
    """One that takes no part gets none, and one behind an infinite number gets an infinite one."""
    sizes = {**_SIZES, "hidden_size": 32, "intermediate_size": 48}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", vocab_size=97, **sizes))
    base.extra = torch.nn.Parameter(torch.zeros(3))
    model = PackModel(base, base)
    examples = [Example((TokenSequence.trained_from([*range(3, 12)], 1),))]
    given = (model, make_recipe().stage, examples, "prefix", Accelerator(cpu=True))

    assert check_gradients(*given) == ["1 weights that should train get no finite gradient, such as extra"]
    with torch.no_grad():
        base.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    assert any("no finite gradient, such as" in notice for notice in check_gradients(*given))
