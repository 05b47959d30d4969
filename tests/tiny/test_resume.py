"""A run that was stopped, however roughly, goes on bit by bit as if it had not been."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from tunesmith.core.errors import UserError
from tunesmith.core.files import read_jsonl
from tunesmith.engine.checkpoint import (
    list_checkpoints,
    load_tree,
    load_weights,
    random_state,
    save_tree,
    set_random_state,
)
from tunesmith.run.train import resume, train

METHODS = [{"type": "lora", "rank": 4, "dropout": 0.1}, "full"]


class Killed(BaseException):
    """The end of the process, as far as a test can have it; nothing in the source catches it."""


class KillAt:
    """A listener that dies at the *number*-th event (from 0) of one of *kinds*."""

    def __init__(self, number: int, *kinds: str) -> None:
        self.left, self.kinds = number, kinds

    def __call__(self, event) -> None:
        if event["kind"] in self.kinds:
            self.left -= 1
            if self.left < 0:
                raise Killed


class SignalAt:
    """A listener that sends this process a signal during step *step*."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number

    def __call__(self, event) -> None:
        if event["kind"] == "step" and event["step"] == self.step:
            signal.raise_signal(self.number)


def result(folder) -> bytes:
    """The bytes of the weights a run ended with."""
    (path,) = (folder / "weights").glob("*.safetensors")
    return path.read_bytes()


@pytest.fixture
def same_run(measured):
    """Return a function that compares two runs: every measurement and every weight, bit by bit."""

    def compare(one, other) -> bool:
        return measured(one) == measured(other) and result(one) == result(other)

    return compare


@pytest.fixture(scope="module")
def whole(make_recipe_in, tmp_path_factory):
    """Return a function that gives the folder of an uninterrupted run of changed blocks, trained once."""
    done = {}

    def run(**blocks):
        if repr(blocks) not in done:
            recipe = make_recipe_in(tmp_path_factory.mktemp("whole"), **blocks)
            assert train(recipe).complete
            done[repr(blocks)] = recipe.output
        return done[repr(blocks)]

    return run


def kill(recipe, listener) -> None:
    """Train until the listener ends it."""
    with pytest.raises(Killed):
        train(recipe, listener)


@pytest.mark.parametrize("method", METHODS, ids=["lora-dropout", "full"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_goes_on_as_if_it_had_not_been(number, method, make_recipe, whole, same_run):
    stopped = make_recipe(method=method)
    outcome = train(stopped, SignalAt(3, number))

    assert (outcome.reason, outcome.complete) == (number.name, False)
    # it had the time to save where it was: no step is done twice
    assert max(step for step, _ in list_checkpoints(outcome.folder.checkpoints)) == 3
    assert resume(stopped.output).complete
    assert same_run(whole(method=method), stopped.output)


# six steps, three validations, three checkpoints: killed after any of the events that leave something on the disk
@pytest.mark.parametrize("number", range(1, 12))
def test_a_run_killed_at_any_time_goes_on_as_if_it_had_not_been(number, make_recipe, whole, same_run):
    killed = make_recipe()
    kill(killed, KillAt(number, "step", "evaluation", "checkpoint"))

    assert resume(killed.output).complete
    assert same_run(whole(), killed.output)


def test_a_run_may_be_stopped_again_and_again(make_recipe, whole, same_run):
    stopped = make_recipe()
    kill(stopped, KillAt(2, "step"))
    for step in (4, 5):
        assert not resume(stopped.output, SignalAt(step, signal.SIGTERM)).complete
    assert resume(stopped.output).complete

    assert same_run(whole(), stopped.output)


def test_a_run_killed_before_its_first_checkpoint_starts_again(make_recipe, whole, same_run):
    killed = make_recipe()
    kill(killed, KillAt(0, "step"))
    notices = []

    assert resume(killed.output, lambda event: notices.append(event.get("text"))).complete
    assert "no checkpoint yet: starting again" in notices
    assert same_run(whole(), killed.output)


def test_a_run_killed_after_its_last_step_only_gets_its_weights(make_recipe, whole, same_run):
    killed = make_recipe()
    kill(killed, KillAt(0, "end"))
    steps = []

    assert resume(killed.output, lambda event: steps.append(event["kind"] == "step")).complete
    assert not any(steps)
    assert same_run(whole(), killed.output)


NO_GAIN = {"every": 1, "minimum_gain": 100, "patience": 3}


@pytest.mark.parametrize("kinds", [("step",), ("end",)], ids=["before it ended early", "when it had ended early"])
def test_early_stopping_counts_on_and_stays_the_end(kinds, make_recipe, whole, same_run):
    blocks = {"evaluation": NO_GAIN, "schedule": {"steps": 20}}
    killed = make_recipe(**blocks)
    kill(killed, KillAt(2 if kinds == ("step",) else 0, *kinds))

    assert resume(killed.output).reason == "early stopping"
    assert same_run(whole(**blocks), killed.output)


def test_what_a_crash_left_half_written_is_never_picked_up(make_recipe, whole, same_run):
    killed = make_recipe()
    kill(killed, KillAt(3, "step"))
    checkpoints = killed.output / "checkpoints"
    ((_, newest),) = list_checkpoints(checkpoints)
    for name in (".step-00000004.partial", ".step-00000002.old", "step-00000005", "step-00000006.copy"):
        shutil.copytree(newest, checkpoints / name)
    (checkpoints / "step-00000005" / "state.json").unlink()
    with (killed.output / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"kind": "step", "step": 5, "lo')

    assert [(2, newest)] == list_checkpoints(checkpoints)
    assert resume(killed.output).complete
    assert same_run(whole(), killed.output)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_it(make_recipe, whole, same_run, monkeypatch):
    killed = make_recipe()
    with monkeypatch.context() as patch:
        written = iter(range(100))

        def save(path, tree) -> None:
            if next(written) == 2:  # optimizer and random state of the first, optimizer of the second
                raise OSError(28, "No space left on device")
            save_tree(path, tree)

        patch.setattr("tunesmith.engine.checkpoint.save_tree", save)
        with pytest.raises(OSError, match="No space left"):
            train(killed)

    assert [step for step, _ in list_checkpoints(killed.output / "checkpoints")] == [2]
    assert resume(killed.output).complete
    assert same_run(whole(), killed.output)


def test_a_process_killed_by_the_system_goes_on_in_another(make_recipe, whole, same_run, tmp_path):
    """SIGKILL to a real command, resumed in this process."""
    long = {"schedule": {"steps": 60}, "evaluation": {"every": 20}, "checkpoints": {"every": 3}}
    killed = make_recipe(**long)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(killed.model_dump(mode="json", exclude_defaults=True)), "utf-8")
    command = [sys.executable, "-m", "tunesmith", "train", str(recipe)]
    process = subprocess.Popen(["env", "OMP_NUM_THREADS=1", *command], stdout=subprocess.DEVNULL)
    try:
        while len(read_jsonl(killed.output / "metrics.jsonl")) < 10:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()

    assert not (killed.output / "weights").exists()
    assert resume(killed.output).complete
    assert same_run(whole(**long), killed.output)


def test_a_run_whose_data_changed_is_refused(make_recipe, data, tmp_path):
    own = tmp_path / "own.json"
    shutil.copy(data[0], own)
    recipe = make_recipe(data={"train": str(own)})
    kill(recipe, KillAt(3, "step"))
    rows = json.loads(own.read_text("utf-8"))
    before = (recipe.output / "metrics.jsonl").read_bytes()
    own.write_text(json.dumps([*rows[:-1], {**rows[-1], "output": "something else"}]), "utf-8")

    with pytest.raises(UserError, match=r"own\.json changed since the run began.*put the file back"):
        resume(recipe.output)
    assert before == (recipe.output / "metrics.jsonl").read_bytes()
    own.write_text(json.dumps(rows), "utf-8")
    assert resume(recipe.output).complete


def test_a_finished_run_is_refused_with_the_way_on(make_recipe):
    recipe = make_recipe()
    train(recipe)

    with pytest.raises(UserError, match=r"is finished; to train further, start a new recipe with model: .*run"):
        resume(recipe.output)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run"):
        resume(tmp_path)


def test_a_run_is_not_overwritten_unless_asked(make_recipe, measured):
    recipe = make_recipe()
    kill(recipe, KillAt(2, "step"))

    with pytest.raises(UserError, match=r"already holds a run.*tunesmith resume .*--overwrite"):
        train(recipe)
    assert sum(event["kind"] == "step" for event in measured(recipe.output)) == 3
    assert train(recipe, overwrite=True).complete


def test_weights_of_another_model_are_refused(make_recipe, saved_model):
    from transformers import AutoModelForCausalLM

    recipe = make_recipe(method="full")
    train(recipe)
    ((_, checkpoint), *_) = list_checkpoints(recipe.output / "checkpoints")
    other = AutoModelForCausalLM.from_pretrained(saved_model("llama"))

    with pytest.raises(UserError, match=r"does not fit this run's model: weight .*\d+ such weights"):
        load_weights(checkpoint, other)


def draw() -> list[float]:
    """One number of each generator; gauss and randn keep a second one for the next call."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(1))]


def test_the_state_of_every_random_generator_survives_the_disk(tmp_path):
    draw()
    save_tree(tmp_path / "state", random_state())
    expected = [draw() for _ in range(3)]
    set_random_state(load_tree(tmp_path / "state"))

    assert expected == [draw() for _ in range(3)]


def test_a_state_is_written_without_a_copy(tmp_path):
    """Of a model that trains in full, the optimizer's state is what needs the most memory."""
    tree = {name: torch.full((2**18,), float(place)) for place, name in enumerate("abc")}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        save_tree(tmp_path / "state", tree)
    taken = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]

    assert sum(each for each in taken if each > 0) < tree["a"].nbytes
    assert all(torch.equal(load_tree(tmp_path / "state")[name], tensor) for name, tensor in tree.items())


def test_an_optimizers_state_survives_the_disk_without_pickle(tmp_path):
    shared = torch.arange(6.0)
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "mean": shared[::2], "same": shared}, "name": {}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "fused": True, "foreach": None, "params": [0, 1]}],
    }
    save_tree(tmp_path / "optimizer", tree)
    found = load_tree(tmp_path / "optimizer")

    assert {"optimizer.json", "optimizer.safetensors"} == {path.name for path in tmp_path.iterdir()}
    assert tree["param_groups"] == found["param_groups"]
    assert tree["state"].keys() == found["state"].keys()
    assert all(torch.equal(tensor, found["state"][0][name]) for name, tensor in tree["state"][0].items())
