"""The benchmark's data and arithmetic; nothing is measured here."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from reference import useful_flops  # noqa: E402
from report import page  # noqa: E402
from results import Run, Spread, disagreement, ratio, read_session  # noqa: E402
from run import choose_contestants  # noqa: E402
from workloads import WORKLOADS, Case, make_rows, read_rows, write_rows  # noqa: E402


def record(peer="tunesmith", setting="default", repeat=1, seconds=1.0, mode="measure", **changes):
    """Return the record of a run of four steps, the first two of which are slow."""
    step = {"cpu_seconds": 2 * seconds, "samples": 32, "tokens": 640, "trained_tokens": 320, "tokens_fed": 800}
    steps = [{"seconds": 9.0, **step}, {"seconds": 9.0, **step}, *[{"seconds": seconds, **step}] * 2]
    result = {
        "version": "1.0",
        "versions": {"python": "3.11"},
        "import_seconds": 1.0,
        "first_step_seconds": 5.0,
        "rss_before": 300.0,
        "peak_rss": 900.0,
        "live_peak": 120.0,
        "gpu_before": None,
        "gpu_peak": None,
        "steps": steps,
        "losses": [3.0],
        "products": {"bfloat16": {"wall": 100.0, "cpu": 50.0}},
    }
    counts = {"samples": 128, "tokens": 2560, "trained_tokens": 1280, "useful_flops": 12800.0}
    values = {"peer": peer, "setting": setting, "repeat": repeat, "mode": mode, "busy_before": 0.1}
    return {**values, "case": Case().as_data(), "counts": counts, "result": {**result, **changes}}


def write_session(path, *records):
    header = {"date": "2026-11-20", "command": "python bench/run.py", "processor": "CPU", "cores": 2, "memory_gib": 24}
    lines = [{**header, "system": "Linux", "threads": 2, "commit": "abc"}, *records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return read_session(path)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_seed_gives_the_same_rows_and_fewer_examples_the_first_of_them(workload):
    assert make_rows(Case(workload, 40)) == make_rows(Case(workload, 40))
    assert make_rows(Case(workload, 40).first(32)) == make_rows(Case(workload, 40))[:32]
    assert make_rows(Case(workload, 40)) != make_rows(Case(workload, 40, seed=1))


def test_rows_do_not_change_from_one_python_to_the_next():
    text = json.dumps([make_rows(Case(workload, 8)) for workload in WORKLOADS], ensure_ascii=False)

    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f13c8dc1f9ee32f6"


@pytest.mark.parametrize("workload", WORKLOADS)
def test_written_rows_read_back(tmp_path, workload):
    case = Case(workload, 4)
    write_rows(case, tmp_path)

    assert read_rows(tmp_path) == make_rows(case)


def test_alpaca_and_messages_hold_the_same_text(tmp_path):
    write_rows(Case("style", 4), tmp_path)
    alpaca = json.loads((tmp_path / "alpaca.json").read_text("utf-8"))

    assert [[f"{row['instruction']}\n{row['input']}", row["output"]] for row in alpaca] == [
        [m["content"] for m in row["messages"]] for row in read_rows(tmp_path)
    ]


def test_cases_that_differ_have_different_names():
    cases = [
        Case(),
        Case("long"),
        Case(method="full"),
        Case(vocabulary=151_936),
        Case("long", length=128),
        Case(examples=1000, most_steps=4),
        Case(shape="tiny"),
    ]

    assert len({case.name for case in cases}) == len(cases)


def test_rates_leave_out_the_warm_up():
    run = Run(record(seconds=2.0))

    assert run.rate("samples") == 16
    assert run.rate("tokens", "cpu_seconds") == 160


def test_utilization_is_useful_work_over_what_the_best_product_would_do():
    # 64 of 128 samples after the warm-up: 6,400 FLOP in 2 seconds, where the best product makes 100 a second
    assert Run(record(seconds=1.0)).utilization({"wall": 100.0, "cpu": 50.0}) == 32.0


def test_a_ratio_compares_medians_and_spans_the_rounds():
    ours = [Run(record(repeat=n, seconds=s)) for n, s in ((1, 1.0), (2, 2.0), (3, 1.0))]
    theirs = [Run(record("trl", repeat=n, seconds=s)) for n, s in ((1, 4.0), (2, 4.0), (3, 2.0))]

    assert ratio(ours, theirs, lambda run: run.rate("samples")) == Spread(2.0, 4.0, 4.0)


def test_who_trains_other_tokens_or_comes_to_another_loss_is_told():
    assert disagreement(Run(record()), 3.0) is None
    assert disagreement(Run(record()), 4.0) == "loss 3.0000 against 4.0000"
    short = record()
    short["result"]["steps"] = short["result"]["steps"][:3]

    assert disagreement(Run(short), 3.0) == ("96 samples of 128; 1,920 tokens of 2,560; 960 trained tokens of 1,280")


def test_useful_work_counts_each_distinct_prefix_of_a_step_once():
    one, other = ([1, 2, 3, 4], [False, False, True, True]), ([1, 2, 3, 5], [False, False, True, True])
    alone, twice, apart = (useful_flops(Case(), batches) for batches in ([[one]], [[one, one]], [[one], [one]]))
    joined = useful_flops(Case(), [[one, other]])

    assert alone == twice
    assert apart == 2 * alone
    assert alone < joined < apart


def test_an_unknown_peer_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match=r"no such peer: trl/pack; have tunesmith/default, .*trl/packing"):
        choose_contestants(["trl/pack"])


def test_ours_is_always_among_the_contestants():
    assert choose_contestants(["trl/packing"]) == [
        ("tunesmith", "default"),
        ("tunesmith", "compiled"),
        ("tunesmith", "float32"),
        ("trl", "packing"),
    ]
    assert choose_contestants(["trl/packing", "tunesmith/default"]) == [("tunesmith", "default"), ("trl", "packing")]


def test_growth_is_a_table_of_its_own(tmp_path):
    larger = {**record(), "case": Case(vocabulary=151_936).as_data()}
    text = page([write_session(tmp_path / "one.jsonl", record(), larger)])

    assert "### How couplets (lora) grows" in text
    assert "| Tunesmith default | 20 | 384 | 151,936 | 640 | 5.0 | 900 |" in text


def test_figures_from_a_busy_machine_say_so(tmp_path):
    busy = {**record(), "busy_before": 1.0}

    assert "Others were using the machine" in page([write_session(tmp_path / "busy.jsonl", busy)])
    assert "Others were using the machine" not in page([write_session(tmp_path / "idle.jsonl", record())])


def test_the_page_names_date_machine_versions_and_command(tmp_path):
    records = [record(mode="check", repeat=0), record(), record("trl", "packing", seconds=4.0)]
    failed = {**record("llamafactory"), "error": "ran past 1800 seconds"}
    del failed["result"]
    text = page([write_session(tmp_path / "one.jsonl", *records, failed)])

    for expected in (
        "## 2026-11-20",
        "    python bench/run.py",
        "CPU, 2 cores, 24 GiB, Linux; 2 threads",
        "- TRL 1.0: python 3.11",
        "4.00× (4.00–4.00) TRL packing",
        "LLaMA-Factory default did not run: ran past 1800 seconds",
        "it has never run on a GPU",
    ):
        assert expected in text
