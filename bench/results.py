"""Result files and what is computed from them: rates, ratios, agreement."""

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 2
"""First steps of a run that do not count towards its rates; they count in the time to the first step."""
TOLERANCE = 0.02
"""How far losses of step 1 may be apart, relative: bfloat16 has three digits."""
HOPPER = 990e12
"""Dense bfloat16 FLOP a second of an H100 or H200, rounded."""


@dataclass(frozen=True)
class Session:
    """One run of the benchmark: where and when, and every measurement, in the order they were made."""

    header: dict[str, Any]
    records: list[dict[str, Any]]

    def cases(self) -> list[str]:
        """Return the names of the cases, in the order they were measured."""
        return list(dict.fromkeys(r["case"]["name"] for r in self.records))

    def runs(self, case: str, mode: str) -> "dict[tuple[str, str], list[Run]]":
        """Return the runs of *case* by peer and setting."""
        found: dict[tuple[str, str], list[Run]] = {}
        for record in self.records:
            if record["case"]["name"] == case and record["mode"] == mode:
                found.setdefault((record["peer"], record["setting"]), []).append(Run(record))
        return found


def read_session(path: Path) -> Session:
    """Return the session in the JSON-lines file at *path*: the header first, then a record a line."""
    header, *records = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return Session(header, records)


@dataclass(frozen=True)
class Run:
    """One measurement; rates are over the steps after the warm-up."""

    record: dict[str, Any]

    @property
    def error(self) -> str | None:
        """Why there is no result, if there is none."""
        error: str | None = self.record.get("error")
        return error

    @property
    def repeat(self) -> int:
        """Which round of the session it belongs to."""
        return int(self.record["repeat"])

    def total(self, name: str, *, warm_up: int = WARM_UP) -> float:
        """Return the sum of a step's field; every step counts where there are too few to leave any out."""
        steps = self.record["result"]["steps"]
        return float(sum(step[name] for step in steps[warm_up if len(steps) > warm_up else 0 :]))

    def rate(self, name: str, clock: str = "seconds") -> float:
        """Return so many of *name* a second, by the wall's clock or the processor's (``cpu_seconds``)."""
        return self.total(name) / self.total(clock)

    def quickest(self) -> float:
        """Return the samples a second of the quickest step: what others did to the machine shows in it least."""
        return max(float(step["samples"] / step["seconds"]) for step in self.record["result"]["steps"])

    def number(self, name: str) -> float | None:
        """Return a number of the whole run."""
        value: float | None = self.record["result"][name]
        return value

    @property
    def peak(self) -> float:
        """The highest memory of the training, in megabytes: the GPU's where there is one, else the process's."""
        return float(self.number("gpu_peak") or self.number("peak_rss") or 0)

    @property
    def before(self) -> float:
        """The same before the first step, with the model loaded."""
        return float(self.number("gpu_before") or self.number("rss_before") or 0)

    @property
    def first_loss(self) -> float | None:
        """The loss of the first step."""
        losses = self.record["result"]["losses"]
        return losses[0] if losses else None

    def utilization(self, best: dict[str, float], clock: str = "wall") -> float | None:
        """Return useful FLOP a second as a share of *best*, the best bfloat16 product's rate by the same clock."""
        flops, counts = self.record["counts"]["useful_flops"], self.record["counts"]
        if flops is None:
            return None
        seconds = self.total("seconds" if clock == "wall" else "cpu_seconds")
        return float(flops * self.total("samples") / counts["samples"] / seconds / best[clock])


@dataclass(frozen=True)
class Spread:
    """A quantity over the repeats."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Return minimum, median and maximum of *values*."""
        known = sorted(values)
        return cls(known[0], statistics.median(known), known[-1])


def good(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that came to an end."""
    return [run for run in runs if run.error is None]


def spread(runs: Iterable[Run], quantity: Callable[[Run], float | None]) -> Spread | None:
    """Return *quantity* over *runs*, None where none has it."""
    values = [value for run in good(runs) if (value := quantity(run)) is not None]
    return Spread.of(values) if values else None


def ratio(ours: list[Run], theirs: list[Run], quantity: Callable[[Run], float]) -> Spread | None:
    """Return ours over theirs: low and high from pairs of the same round, the middle from the medians of both."""
    by_round = {run.repeat: quantity(run) for run in good(theirs)}
    pairs = [quantity(run) / by_round[run.repeat] for run in good(ours) if run.repeat in by_round]
    if not pairs:
        return None
    middle = statistics.median(quantity(r) for r in good(ours)) / statistics.median(by_round.values())
    return Spread(min(pairs), middle, max(pairs))


def best_products(session: Session, dtype: str = "bfloat16") -> dict[str, float]:
    """Return the best rates of a matrix product that any run of the session saw, by clock, in FLOP a second; on a GPU
    the rate that Hopper's maker names.
    """
    if session.header.get("gpu"):
        return {"wall": HOPPER, "cpu": HOPPER}
    rates = [r["result"]["products"][dtype] for r in session.records if "result" in r]
    return {clock: max(rate[clock] for rate in rates) for clock in ("wall", "cpu")} if rates else {}


def disagreement(run: Run, reference_loss: float | None) -> str | None:
    """Return in what a check run differs from what it should have trained; None where it agrees."""
    counts, found = run.record["counts"], []
    for name in ("samples", "tokens", "trained_tokens"):
        seen = run.total(name, warm_up=0)
        if seen and seen != counts[name]:
            found.append(f"{seen:,.0f} {name.replace('_', ' ')} of {counts[name]:,}")
    loss = run.first_loss
    if loss is not None and reference_loss is not None and abs(loss - reference_loss) > TOLERANCE * reference_loss:
        found.append(f"loss {loss:.4f} against {reference_loss:.4f}")
    return "; ".join(found) or None
