"""What every runner measures, in the same way: steps, memory, start-up and the machine's best matrix product."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MEGABYTE = 2**20
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "tokenizers")


@dataclass(frozen=True)
class Task:
    """What one runner is asked to do; the driver writes it as JSON and passes its path."""

    peer: str
    package: str
    """The distribution whose version is reported."""
    setting: str
    options: dict[str, Any]
    method: str
    workload: str
    mode: str
    """``measure``, or ``check``: one step over the whole file, with the memory of live tensors."""
    rows: str
    model: str
    work: str
    """A folder for what the peer writes."""
    result: str
    batch_size: int
    most_steps: int
    pack_rows: int
    """Packed rows that hold about one batch, for those that pack, …"""
    pack_length: int
    """… and their length in tokens."""
    opening: tuple[int, int]
    """Two token ids that stand at the beginning of each sequence and nowhere else: samples are counted by them."""
    padding: int
    spawned: float
    """``time.monotonic()`` of the driver when it started the runner."""


def read_task() -> Task:
    """Return the task in the file that the command line names."""
    values = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    return Task(**{**values, "opening": tuple(values["opening"])})


@dataclass
class Counts:
    """What went through the model in one optimizer step."""

    samples: int = 0
    tokens: int = 0
    """Real ones, without padding."""
    trained_tokens: int = 0
    tokens_fed: int = 0
    """What the model was given, padding included."""


@dataclass
class Meter:
    """Takes the times and sizes of one run; the runner calls its methods in the order they stand here."""

    task: Task
    import_seconds: float = 0.0
    rss_before: float = 0.0
    peak_rss: float = 0.0
    live_peak: float | None = None
    gpu_before: float | None = None
    gpu_peak: float | None = None
    marks: list[tuple[float, float]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    profiler: Any = None
    shared: tuple[float, float] = (0.0, 0.0)
    """Wall and processor seconds of work that is done once for all steps: each step counts its part."""

    def imported(self) -> None:
        """Note that the peer's libraries are imported."""
        self.import_seconds = time.monotonic() - self.task.spawned

    def begin_shared(self) -> None:
        """Note that work for all steps begins, such as asking a reference model."""
        self.shared = (-time.monotonic(), -time.process_time())

    def end_shared(self) -> None:
        """Note that it has ended."""
        self.shared = (self.shared[0] + time.monotonic(), self.shared[1] + time.process_time())

    def begin(self) -> None:
        """Note that the model is loaded and the first step is about to begin."""
        import torch

        if torch.cuda.is_available():
            self.gpu_before = torch.cuda.memory_allocated() / MEGABYTE
            torch.cuda.reset_peak_memory_stats()
        elif self.task.mode == "check":
            activities = [torch.profiler.ProfilerActivity.CPU]
            self.profiler = torch.profiler.profile(activities=activities, profile_memory=True)
            self.profiler.start()
        self.rss_before = _status("VmRSS")
        # 5 resets the high-water mark of the resident memory (man 5 proc)
        Path("/proc/self/clear_refs").write_text("5", "ascii")
        self._mark()

    def step(self, counts: Counts, loss: float | None = None) -> None:
        """Note the end of an optimizer step."""
        self._mark()
        if self.profiler is not None:
            self.profiler.stop()
            self.live_peak, self.profiler = _live_peak(self.profiler), None
        self.peak_rss = _status("VmHWM")
        (wall, cpu), (wall_before, cpu_before) = self.marks[-1], self.marks[-2]
        self.steps.append({"seconds": wall - wall_before, "cpu_seconds": cpu - cpu_before, **asdict(counts)})
        if loss is not None:
            self.losses.append(loss)

    def finish(self) -> None:
        """Measure the machine's best matrix products and write the result."""
        import torch

        if torch.cuda.is_available():
            self.gpu_peak = torch.cuda.max_memory_allocated() / MEGABYTE
        for step in self.steps:
            step["seconds"] += self.shared[0] / len(self.steps)
            step["cpu_seconds"] += self.shared[1] / len(self.steps)
        result = {
            "version": _versions([self.task.package]).get(self.task.package, "from source"),
            "versions": {"python": sys.version.split()[0], **_versions(LIBRARIES)},
            "threads": torch.get_num_threads(),
            "import_seconds": self.import_seconds,
            "first_step_seconds": self.marks[1][0] - self.task.spawned,
            "total_seconds": time.monotonic() - self.task.spawned,
            "rss_before": self.rss_before,
            "peak_rss": self.peak_rss,
            "live_peak": self.live_peak,
            "gpu_before": self.gpu_before,
            "gpu_peak": self.gpu_peak,
            "steps": self.steps,
            "losses": self.losses,
            "products": {name: _product_rates(name) for name in ("float32", "bfloat16")},
        }
        Path(self.task.result).write_text(json.dumps(result), "utf-8")

    def _mark(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append((time.monotonic(), time.process_time()))


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _status(field_name: str) -> float:
    """Return a field of ``/proc/self/status`` in megabytes."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field_name))


def _live_peak(profiler: Any) -> float:
    """Return the most megabytes of tensors alive at once, above those alive when the profiler started."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak / MEGABYTE


def _product_rates(dtype: str, size: int = 2048, repeats: int = 6) -> dict[str, float]:
    """Return the best rate of a square matrix product, in FLOP a second of wall time and of processor time."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        size = 8192
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best = {"wall": float("inf"), "cpu": float("inf")}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best["wall"] = min(best["wall"], time.perf_counter() - wall)
        best["cpu"] = min(best["cpu"], time.process_time() - cpu)
    return {clock: 2 * size**3 / seconds for clock, seconds in best.items()}
