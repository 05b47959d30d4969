"""Blocks are compiled where the run is long enough to win the warm-up back, and the plan says why or why not."""

from dataclasses import replace

import pytest

from tunesmith.recipe.read import recipe_from_values
from tunesmith.run import compiling
from tunesmith.run.compiling import Work, settle_compiling
from tunesmith.run.machine import Machine
from tunesmith.run.plan import make_plan

MACHINE = Machine(name="EPYC", bfloat16=True, cores=2)
SHORT = Work(steps=10, tokens_per_step=768, layers=8, hidden=512, trains_all=False)
LONG = replace(SHORT, steps=50_000)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A plan of this recipe's run on ``MACHINE``, which has a compiler."""
    monkeypatch.setattr(compiling, "cpp_compiler", lambda: "/usr/bin/g++")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1?", "completion": "2"}\n', "utf-8")

    def make(machine=MACHINE, **engine):
        data = {"train": str(tmp_path / "rows.jsonl")}
        values = {"model": "owner/name", "data": data, "output": "run", "engine": engine}
        return make_plan(recipe_from_values(values), machine, 100, validated=False)

    return make


def test_a_long_run_compiles_and_a_short_one_does_not(plan):
    """Both say what would be saved and what it costs."""
    long, short = (settle_compiling("auto", plan(), MACHINE, work, None) for work in (LONG, SHORT))

    assert (long.compile, short.compile) == (True, False)
    assert "would save about" in long.why
    assert "the first time" in short.why


def test_code_of_an_earlier_run_makes_it_worth_sooner(plan, tmp_path):
    """Between the two prices, only the run whose code is kept compiles."""
    mark = tmp_path / "mark"
    middle = replace(SHORT, steps=1)
    steps = round(1.5 * compiling._MARGIN * compiling._WARM / compiling._GAIN / middle.seconds(MACHINE.cores))
    work = replace(middle, steps=steps)

    assert not settle_compiling("auto", plan(), MACHINE, work, mark).compile
    mark.touch()
    assert settle_compiling("auto", plan(), MACHINE, work, mark).compile


def test_asking_for_it_compiles_a_short_run_and_false_never_does(plan):
    assert settle_compiling(True, plan(), MACHINE, SHORT, None).compile
    assert not settle_compiling(False, plan(), MACHINE, LONG, None).compile


def test_without_a_compiler_the_blocks_stay_eager_with_a_notice(plan, monkeypatch):
    """A notice where it was asked for, a why where it was not."""
    monkeypatch.setattr(compiling, "cpp_compiler", lambda: None)
    asked, auto = (settle_compiling(wanted, plan(), MACHINE, LONG, None) for wanted in (True, "auto"))

    assert not asked.compile
    assert "this machine has none" in asked.notice
    assert not auto.compile
    assert auto.notice is None
    assert "C++ compiler" in auto.why


@pytest.mark.parametrize(
    ("machine", "engine", "said"),
    [
        (MACHINE, {"layout": "padded"}, "only packs"),
        (MACHINE, {"gradient_checkpointing": True}, "gradient checkpointing"),
        (MACHINE, {"attention": "dense"}, "dense attention"),
        (replace(MACHINE, device="cuda"), {}, "not measured on cuda"),
        (replace(MACHINE, processes=2), {}, "2 processes"),
    ],
)
def test_what_cannot_be_compiled_is_named(plan, machine, engine, said):
    settled = settle_compiling(True, plan(machine, **engine), machine, LONG, None)

    assert not settled.compile
    assert said in settled.notice


def test_float32_is_left_alone_until_it_is_measured(plan):
    settled = settle_compiling("auto", plan(precision="float32"), MACHINE, LONG, None)

    assert (settled.compile, settled.why) == (False, "its gain was measured in bfloat16 only")
