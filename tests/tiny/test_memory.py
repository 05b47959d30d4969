"""A step that runs out of memory is run again in smaller passes, and the run is the same run."""

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.engine.loop import TrainingLoop
from tunesmith.run.train import train

LARGEST = 200


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
