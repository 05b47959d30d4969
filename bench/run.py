"""Measure Tunesmith against its peers on this machine: ``make bench``, or ``python bench/run.py --help``."""

import argparse
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from environments import HOME, OURS, PEERS, ROOT, UNUSABLE, Peer
from measure import Task
from reference import BATCH, SHAPES
from report import summary
from results import read_session
from workloads import WORKLOADS, Case

RESULTS = ROOT / "bench" / "results"
PACK_TOKENS = 1024
METHODS = ("lora", "full")
LATE = "ran past the time that one run may take (--timeout)"
# cases without a number of examples get that of --steps
GROWTH = {
    "data": [Case(examples=count, most_steps=4) for count in (1_000, 10_000, 100_000)],
    "length": [Case("long", examples=0, length=length) for length in (128, 256, 512, 1000)],
    "vocabulary": [Case(examples=0, vocabulary=rows) for rows in (32_768, 151_936)],
}


def read_arguments() -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    others = ",".join(name for name in PEERS if name != OURS)
    parser.add_argument("--peers", default=others, help="to compare with; peer/setting picks one setting")
    parser.add_argument("--workloads", type=names(WORKLOADS), default=",".join(WORKLOADS), help="the kinds of data")
    parser.add_argument("--methods", type=names(METHODS), default="lora", help=" or ".join(METHODS))
    parser.add_argument("--grow", type=names(GROWTH), default=[], help=f"also measure growth with {','.join(GROWTH)}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; in each, every peer runs once in turn")
    parser.add_argument("--steps", type=int, default=12, help=f"optimizer steps of {BATCH} examples in one run")
    parser.add_argument("--shape", default="30M", choices=SHAPES, help="model")
    parser.add_argument("--vocabulary", type=int, default=32_768, help="rows of the embedding")
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one run")
    parser.add_argument("--output", type=Path, help="result file; bench/results/<time>.jsonl")
    parser.add_argument("--no-check", action="store_true", help="do not check first that all train the same")
    return parser.parse_args()


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a reader of names between commas that refuses those not *known*."""

    def read(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return text.split(",")

    return read


def busy_cores(seconds: float = 1.0) -> float:
    """Return how many cores others keep busy now; the load average would still hold our last run."""

    def used() -> tuple[float, float]:
        times = [int(each) for each in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:9]]
        return float(sum(times) - times[3] - times[4]), float(sum(times))  # without idle and waiting for disks

    before = used()
    time.sleep(seconds)
    after = used()
    return (os.cpu_count() or 1) * (after[0] - before[0]) / max(1.0, after[1] - before[1])


def main() -> None:
    """Build what is missing, check, measure in rounds, and print the tables."""
    chosen = read_arguments()
    contestants = choose_contestants(chosen.peers.split(","))
    for peer in dict.fromkeys(peer for peer, _ in contestants):
        if (environment := PEERS[peer].environment) is not None:
            environment.build()
    cases = choose_cases(chosen)
    output = chosen.output or RESULTS / time.strftime("%Y-%m-%dT%H%M.jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(HOME / "cache", ignore_errors=True)
    with output.open("w", encoding="utf-8") as lines:
        bench = Bench(chosen.threads, chosen.timeout, lambda record: append(lines, record))
        append(lines, header(shlex.join(["python", "bench/run.py", *sys.argv[1:]]), chosen.threads))
        bench.measure(cases, contestants, chosen.repeats, check=not chosen.no_check)
    print(summary(read_session(output)))
    print(f"written to {output}; docs/performance.md is made from such files by: python bench/report.py")


def choose_cases(chosen: argparse.Namespace) -> list[Case]:
    """Return what to measure, each case once."""
    examples = BATCH * chosen.steps
    sizes = {"vocabulary": chosen.vocabulary, "shape": chosen.shape}
    asked = [Case(workload, examples, method=m, **sizes) for m in chosen.methods for workload in chosen.workloads]
    grown = [case for name in chosen.grow for case in GROWTH[name]]
    asked += [replace(case, shape=chosen.shape, examples=max(case.examples, examples)) for case in grown]
    return list({case.name: case for case in asked}.values())


def choose_contestants(wanted: list[str]) -> list[tuple[str, str]]:
    """Return peers and settings, ours first even where it is not named; end with a message for one not known."""
    chosen: list[tuple[str, str]] = []
    for name in sorted(wanted, key=lambda name: not name.startswith(OURS)):
        peer, _, setting = name.partition("/")
        if peer in UNUSABLE:
            raise SystemExit(f"{peer} cannot be measured here: {UNUSABLE[peer]}")
        if peer not in PEERS or (setting and setting not in PEERS[peer].settings):
            known = ", ".join(f"{p}/{s}" for p, entry in PEERS.items() for s in entry.settings)
            raise SystemExit(f"no such peer: {name}; have {known}")
        chosen += [(peer, s) for s in PEERS[peer].settings if s == setting or not setting]
    if chosen[0][0] != OURS:
        chosen = [*((OURS, setting) for setting in PEERS[OURS].settings), *chosen]
    return list(dict.fromkeys(chosen))


def header(command: str, threads: int) -> dict[str, Any]:
    """Return where and when a session runs."""
    processor = next(line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if "model name" in line)
    memory = next(line for line in Path("/proc/meminfo").read_text("utf-8").splitlines() if "MemTotal" in line)
    commit = ["git", "--no-optional-locks", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "command": command,
        "processor": processor.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.split()[1]) / 2**20),
        "system": platform.platform(),
        "threads": threads,
        "commit": subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip(),
    }


def append(lines: Any, record: dict[str, Any]) -> None:
    """Write *record* as a line of its own, at once: what was measured survives what fails later."""
    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    lines.flush()


class Bench:
    """Runs one peer after the other, each in a process of its own."""

    def __init__(self, threads: int, timeout: int, keep: Callable[[dict[str, Any]], None]) -> None:
        """*timeout* is in seconds, for one run; *keep* is called with every record."""
        self.threads, self.timeout, self.keep = threads, timeout, keep
        self.counts: dict[str, dict[str, Any]] = {}

    def measure(self, cases: list[Case], contestants: list[tuple[str, str]], repeats: int, *, check: bool) -> None:
        """Check each contestant once, then measure them in turn, round by round."""
        for case in cases:
            self.counts[case.name] = self._prepare(case)
        failed: set[tuple[str, str, str]] = set()
        rounds = [("check", 0)] if check else []
        rounds += [("measure", repeat) for repeat in range(1, repeats + 1)]
        for (mode, repeat), case, (peer, setting) in itertools.product(rounds, cases, contestants):
            if case.workload not in PEERS[peer].workloads or (case.name, peer, setting) in failed:
                continue
            if mode == "check" and case.most_steps:
                continue
            record = self._run(case, peer, setting, mode, repeat)
            if record.get("error", LATE) != LATE:  # once more: a busy machine fails now and then
                record = self._run(case, peer, setting, mode, repeat)
            if "error" in record:
                failed.add((case.name, peer, setting))
            self.keep(record)
            print(_line(record), flush=True)

    def _prepare(self, case: Case) -> dict[str, Any]:
        """Write the case's rows and model; return what is in them."""
        folder = _folder(case)
        folder.mkdir(parents=True, exist_ok=True)
        job = {"case": asdict(case), "model": str(_model(case)), "rows": str(folder), "result": f"{folder}/counts.json"}
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        command = self._command(None, ROOT / "bench" / "reference.py", HOME / "cache" / "reference")
        subprocess.run([*command, str(folder / "job.json")], check=True, cwd=ROOT)
        return dict(json.loads((folder / "counts.json").read_text("utf-8")))

    def _run(self, case: Case, peer: str, setting: str, mode: str, repeat: int) -> dict[str, Any]:
        entry, counts, work = PEERS[peer], self.counts[case.name][mode], HOME / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        task = self._task(case, peer, setting, mode, counts, work)
        (work / "task.json").write_text(json.dumps(asdict(task)), "utf-8")
        log = HOME / "logs" / f"{case.name}-{peer}-{setting}-{mode}{repeat}.log"
        log.parent.mkdir(exist_ok=True)
        command = self._command(entry, ROOT / "bench" / "peers" / entry.runner, HOME / "cache" / peer)
        busy = busy_cores()
        record: dict[str, Any] = {"peer": peer, "setting": setting, "mode": mode, "repeat": repeat}
        record |= {"case": case.as_data(), "counts": counts, "busy_before": busy}
        with log.open("w", encoding="utf-8") as output:
            try:
                process = subprocess.run(
                    [*command, str(work / "task.json")],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=self.timeout,
                    cwd=work,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return {**record, "error": LATE}
        if process.returncode or not Path(task.result).exists():
            return {**record, "error": _last_words(log)}
        return {**record, "result": json.loads(Path(task.result).read_text("utf-8"))}

    def _task(self, case: Case, peer: str, setting: str, mode: str, counts: dict[str, Any], work: Path) -> Task:
        tokens = round(BATCH * counts["tokens"] / counts["samples"])
        rows = -(-tokens // PACK_TOKENS)
        length = max(counts["longest"], -(-tokens // rows))
        return Task(
            peer=peer,
            package=PEERS[peer].package,
            setting=setting,
            options=PEERS[peer].settings[setting].options,
            method=case.method,
            workload=case.workload,
            mode=mode,
            rows=str(_folder(case) / mode),
            model=str(_model(case)),
            work=str(work),
            result=str(work / "result.json"),
            batch_size=BATCH,
            most_steps=case.most_steps if mode == "measure" else 0,
            pack_rows=rows,
            pack_length=-(-length // 8) * 8,  # LLaMA-Factory 0.9.5 fails on other lengths
            opening=counts["opening"],
            padding=counts["padding"],
            spawned=time.monotonic(),
        )

    def _command(self, entry: Peer | None, script: Path, cache: Path) -> list[str]:
        """Return the command that runs *script* with the same threads for all, offline, caches of its own."""
        variables = {
            "OMP_NUM_THREADS": self.threads,
            "MKL_NUM_THREADS": self.threads,
            "PYTHONPATH": f"{ROOT / 'bench'}:{ROOT / 'src'}",
            "HF_HUB_OFFLINE": 1,
            "HF_HOME": cache / "huggingface",
            "XDG_CACHE_HOME": cache / "xdg",
            "TORCHINDUCTOR_CACHE_DIR": cache / "inductor",
            "MODELSCOPE_CACHE": cache / "modelscope",
        }
        environment = entry.environment if entry else None
        python = environment.python if environment else Path(sys.executable)
        return ["env", *(f"{name}={value}" for name, value in variables.items()), str(python), str(script)]


def _folder(case: Case) -> Path:
    return HOME / "data" / f"{case.name}-{case.examples}"


def _model(case: Case) -> Path:
    return HOME / "models" / f"{case.shape}-{case.vocabulary}"


def _last_words(log: Path) -> str:
    """Return the end of a failed process's output: its error, as a rule."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300] if lines else 'no output'} (see {log.relative_to(ROOT)})"


def _line(record: dict[str, Any]) -> str:
    name = f"{record['mode']} {record['repeat']}  {record['case']['name']:<16} {record['peer']}/{record['setting']:<15}"
    if "error" in record:
        return f"{name} {record['error']}"
    steps = record["result"]["steps"]
    seconds = sum(step["seconds"] for step in steps)
    losses = record["result"]["losses"]
    return (
        f"{name} {len(steps)} steps, {sum(s['tokens'] for s in steps) / seconds:,.0f} tokens/s, "
        f"first loss {losses[0] if losses else float('nan'):.4f}, peak {record['result']['peak_rss']:,.0f} MB"
    )


if __name__ == "__main__":
    main()
