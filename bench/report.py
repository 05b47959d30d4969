"""Write docs/performance.md from result files: ``python bench/report.py [FILE …]``, or all of bench/results/."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from environments import OURS, PEERS, REMARKS, ROOT, UNUSABLE
from results import (
    Run,
    Session,
    Spread,
    best_products,
    disagreement,
    good,
    ratio,
    read_session,
    spread,
)
from workloads import SAID

PAGE = ROOT / "docs" / "performance.md"
NAMES = {
    OURS: "Tunesmith",
    "transformers": "transformers Trainer",
    "trl": "TRL",
    "llamafactory": "LLaMA-Factory",
    "swift": "ms-swift",
    "unsloth": "Unsloth",
}
Group = dict[tuple[str, str], list[Run]]

INTRODUCTION = """\
# Performance

This page is written by `python bench/report.py` from the result files in `bench/results/`; no number in it was typed.

## What is measured, and how

`make bench` builds a virtual environment for each peer, writes one tiny random Qwen3 model (bfloat16, as released
models are) and the same examples for all, and runs each peer at its defaults and at its best documented settings, every
run in a process of its own. LoRA has rank 16 on all linear layers, a step has 32 examples, the optimizer is AdamW. All
processes get the same number of threads. Tunesmith runs through the calls its command line makes; its peers through
their documented ones.

- **The same work.** Before anything is timed, each trains one step on the same 32 examples: samples, real tokens,
  learnt tokens and the loss must be what the tokenizer's own template gives. What differs is said under the table.
- **Rounds.** The machine is shared, so the contestants take turns, round after round. Ratios are those of the medians;
  behind them stand the lowest and highest ratio within one round.
- **Rates** count real tokens, without padding, and leave out the first two steps. Those count in *first step*: the
  seconds from starting the process to the end of the first optimizer step. The *quickest step* is the one that the
  machine's other users disturbed least.
- **Memory.** *peak* is the process's highest resident memory while it trains; *above start* is what of it came after
  the model was loaded; *live* is the most that tensors held at once above what they held before the step, from torch's
  allocator, in the check step.
- **MFU** is useful work over what the machine's best bfloat16 matrix product would do in the time (2,048 × 2,048,
  measured in every process). Useful is what no engine can leave out: each distinct prefix of a step once, no padding,
  the output head only where a token is learnt. Beside it, the same by processor time, which a busy machine disturbs
  less.
- `packing-labels` is TRL with a patch: on a GPU it runs the output head only where a token is learnt, on a CPU
  everywhere; the patch takes its GPU path, so that the comparison is not flattered by that.

To repeat: `make bench`, or a part of it: `make bench PEERS=trl WORKLOADS=couplets REPEATS=1`
(`python bench/run.py --help` lists the rest; `--grow data,length,vocabulary` measures growth, `--methods full` full
fine-tuning). Then `python bench/report.py`.
"""
GPU = """\
## On a GPU

Not measured yet: no GPU was lent to the work that wrote this. `bench/gpu.py` holds the benchmark (Qwen3-0.6B- and
1.7B-shaped random models in bfloat16, transformers' Trainer against Tunesmith, MFU against 990 TFLOP/s) and is written
to run unchanged; **it has never run on a GPU.**
"""


def main() -> None:
    """Write the page from the files that the command line names."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "bench" / "results").glob("20*.jsonl"))
    if not paths:
        raise SystemExit("no result files in bench/results; measure with: make bench")
    PAGE.write_text(page([read_session(path) for path in paths]), encoding="utf-8")
    print(f"wrote {PAGE} from {len(paths)} result files")


def page(sessions: Iterable[Session]) -> str:
    """Return the whole page, the newest session first."""
    ordered = sorted(sessions, key=lambda session: str(session.header["date"]), reverse=True)
    left_out = "".join(f"- **{peer}** is not measured: {why}.\n" for peer, why in UNUSABLE.items())
    on_gpu = [s for s in ordered if s.header.get("gpu")]
    parts = [INTRODUCTION, *_settings(), left_out, *(summary(s) for s in ordered if s not in on_gpu)]
    return "\n".join([*parts, GPU if not on_gpu else "", *(summary(s) for s in on_gpu)]).rstrip() + "\n"


def _settings() -> list[str]:
    """Return what each setting of each peer means."""
    lines = ["## The settings", ""]
    for peer, entry in PEERS.items():
        remark = f" ({REMARKS[peer]})" if peer in REMARKS else ""
        lines += [f"- **{NAMES[peer]}**{remark}"]
        lines += [f"    - `{name}`: {setting.words}" for name, setting in entry.settings.items()]
    return lines


def summary(session: Session) -> str:
    """Return one session's machine and tables as Markdown."""
    head = session.header
    lines = [
        f"## {head['date']}",
        "",
        f"{head.get('gpu') or head['processor']}, {head['cores']} cores, {head['memory_gib']} GiB, {head['system']}; "
        f"{head['threads']} threads a process; {_others(session)}; Tunesmith at {head['commit']}.",
        "",
        f"    {head['command']}",
        "",
        *_versions(session),
        "",
        *_busy(session),
    ]
    for case in session.cases():
        lines += [*_case(session, case), ""]
    return "\n".join([*lines, *_growth(session)])


def _others(session: Session) -> str:
    """Return how busy others kept the machine before the runs; older sessions have the load, ours included."""
    key, words = ("busy_before", "cores busy") if "busy_before" in session.records[0] else ("load_before", "load")
    found = Spread.of(record[key] for record in session.records)
    return f"{words} before a run {found.low:.1f}–{found.high:.1f} (median {found.middle:.1f})"


def _busy(session: Session) -> list[str]:
    """Return a warning where others used the machine, or where that was not measured."""
    if "busy_before" not in session.records[0]:
        return ["The load before a run holds the run before it: what others used was not measured apart.", ""]
    if Spread.of(record["busy_before"] for record in session.records).middle < session.header["cores"] / 8:
        return []
    return ["**Others were using the machine: a trial of the benchmark, not a result to quote.**", ""]


def _versions(session: Session) -> list[str]:
    found = {}
    for record in session.records:
        if "result" in record:
            libraries = {name: v for name, v in record["result"]["versions"].items() if name != record["peer"]}
            listed = ", ".join(f"{name} {version}" for name, version in libraries.items())
            found[record["peer"]] = f"- {NAMES[record['peer']]} {record['result']['version']}: {listed}"
    return list(found.values())


def _case(session: Session, name: str) -> list[str]:
    case = next(r["case"] for r in session.records if r["case"]["name"] == name)
    timed, checked = session.runs(name, "measure"), session.runs(name, "check")
    counts = next(r["counts"] for r in session.records if r["case"]["name"] == name)
    lines = [
        f"### {name}",
        "",
        f"{SAID[case['workload']]}; {case['method']}, {case['shape']} model, {case['vocabulary']:,} tokens in the "
        f"vocabulary; {counts['samples']:,} sequences of {counts['tokens'] / counts['samples']:.0f} tokens on average, "
        f"{counts['trained_tokens'] / counts['tokens']:.0%} of them learnt.",
        "",
        *_headline(timed),
        *_speed(timed, best_products(session)),
        "",
        *_cost(timed, checked),
    ]
    return [*lines, *_agreement(checked), *_failures(timed, checked)]


def _growth(session: Session) -> list[str]:
    """Return how cost grows, for each workload that the session measured in several sizes."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for record in session.records:
        named = sizes.setdefault((record["case"]["workload"], record["case"]["method"]), [])
        if record["case"]["name"] not in named:
            named.append(record["case"]["name"])
    lines = []
    for (workload, method), names in sizes.items():
        if len(names) < 2:
            continue
        columns = ["", "tokens", "examples", "vocabulary", "real tokens/s", "first step s", "peak MB"]
        lines += [f"### How {workload} ({method}) grows", "", _row(columns), _row(["---"] * len(columns))]
        by_size = {name: session.runs(name, "measure") for name in names}
        for peer, setting in dict.fromkeys(key for timed in by_size.values() for key in timed):
            for timed in by_size.values():
                if runs := good(timed.get((peer, setting), [])):
                    counts, case = runs[0].record["counts"], runs[0].record["case"]
                    cells = [f"{NAMES[peer]} {setting}", f"{counts['tokens'] / counts['samples']:.0f}"]
                    cells += [f"{case['examples']:,}", f"{case['vocabulary']:,}"]
                    cells += [_middle(runs, lambda run: run.rate("tokens"))]
                    cells += [_middle(runs, lambda run: run.number("first_step_seconds"), 1)]
                    lines.append(_row([*cells, _middle(runs, lambda run: run.peak)]))
        lines.append("")
    return lines


def _samples(run: Run) -> float:
    return run.rate("samples")


def _headline(timed: Group) -> list[str]:
    """Return the two ratios that the goals name."""
    ours = timed.get((OURS, "default"), [])
    others = {key: runs for key, runs in timed.items() if key[0] != OURS and good(runs)}
    if not good(ours) or not others:
        return []
    best = max(others, key=lambda key: (spread(others[key], _samples) or Spread(0, 0, 0)).middle)
    said = []
    for key in dict.fromkeys([("llamafactory", "default"), best]):
        if key in others and (found := ratio(ours, others[key], _samples)):
            said.append(f"{_times(found)} {NAMES[key[0]]} {key[1]}")
    return [f"Samples per second, Tunesmith's default over: {'; '.join(said)} (the fastest setting of a peer).", ""]


def _speed(timed: Group, best: dict[str, float]) -> list[str]:
    columns = ["", "samples/s", "real tokens/s", "learnt tokens/s", "Tunesmith is", "at its best", "by processor time"]
    columns += ["quickest step, samples/s"]
    lines = [_row([*columns, "MFU", "MFU, processor"]), _row(["---"] * (len(columns) + 2))]
    ours = {key: runs for key, runs in timed.items() if key[0] == OURS and good(runs)}
    default = timed.get((OURS, "default"), [])
    fastest = max(ours.values(), key=lambda runs: (spread(runs, _samples) or Spread(0, 0, 0)).middle, default=[])
    for (peer, setting), runs in timed.items():
        if not good(runs):
            continue
        cells = [f"{NAMES[peer]} {setting}", _range(spread(runs, _samples), 2)]
        cells += [_range(spread(runs, lambda run: run.rate("tokens")), 0)]
        cells += [_range(spread(runs, lambda run: run.rate("trained_tokens")), 0)]
        if peer == OURS:
            cells += ["", "", ""]
        else:
            cells += [_times(ratio(default, runs, _samples)), _times(ratio(fastest, runs, _samples))]
            cells += [_times(ratio(default, runs, lambda run: run.rate("samples", "cpu_seconds")))]
        used = spread(runs, lambda run: run.utilization(best, "wall"))
        by_processor = spread(runs, lambda run: run.utilization(best, "cpu"))
        cells.append(_range(spread(runs, Run.quickest), 2))
        cells += [f"{share.middle:.0%}" if share else "" for share in (used, by_processor)]
        lines.append(_row(cells))
    return lines


def _cost(timed: Group, checked: Group) -> list[str]:
    columns = ["", "peak MB", "above start MB", "live MB", "first step s, cold", "then", "imports s"]
    lines = [_row(columns), _row(["---"] * len(columns))]
    for key, runs in timed.items():
        if not good(runs):
            continue
        first, *later = good(runs)
        cells = [
            f"{NAMES[key[0]]} {key[1]}",
            _middle(runs, lambda run: run.peak),
            _middle(runs, lambda run: run.peak - run.before),
            _middle(checked.get(key, []), lambda run: run.number("live_peak")),
            f"{first.number('first_step_seconds'):.1f}",
            _middle(later, lambda run: run.number("first_step_seconds"), 1),
            _middle(runs, lambda run: run.number("import_seconds"), 1),
        ]
        lines.append(_row(cells))
    return [*lines, ""]


def _agreement(checked: Group) -> list[str]:
    """Return who trained other tokens or came to another loss."""
    losses = [run.first_loss for runs in checked.values() for run in good(runs) if run.first_loss is not None]
    if not losses:
        return ["Whether all train the same was not checked in this session."]
    known = checked.get(("transformers", "float32")) or checked.get(("transformers", "default")) or []
    reference = next((run.first_loss for run in good(known)), losses[0])
    lines = []
    for (peer, setting), runs in checked.items():
        for run in good(runs):
            if (what := disagreement(run, reference)) is not None:
                lines.append(f"- {NAMES[peer]} {setting} trained otherwise: {what}.")
    same = sum(len(good(runs)) for runs in checked.values()) - len(lines)
    spread_of_losses = f"their losses {min(losses):.4f} to {max(losses):.4f}"
    return [f"{same} settings trained the same tokens in the check step, {spread_of_losses}.", *lines]


def _failures(*groups: Group) -> list[str]:
    failed = {key: run.error for group in groups for key, runs in group.items() for run in runs if run.error}
    return [f"- {NAMES[peer]} {setting} did not run: {error}" for (peer, setting), error in failed.items()]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _range(values: Spread | None, digits: int) -> str:
    return f"{values.middle:,.{digits}f} ({values.low:,.{digits}f}–{values.high:,.{digits}f})" if values else ""


def _times(values: Spread | None) -> str:
    return f"{values.middle:.2f}× ({values.low:.2f}–{values.high:.2f})" if values else ""


def _middle(runs: list[Run], quantity: Callable[[Run], float | None], digits: int = 0) -> str:
    values = spread(runs, quantity)
    return f"{values.middle:,.{digits}f}" if values else ""


if __name__ == "__main__":
    main()
