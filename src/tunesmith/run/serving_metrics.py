"""What a server counts, in the text that Prometheus reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tunesmith.generation.requests import EngineStats

Labels = tuple[tuple[str, str], ...]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_COUNTERS = {
    "tunesmith_http_requests_total": "Requests by route and status.",
    "tunesmith_prompt_tokens_total": "Tokens of prompts by model.",
    "tunesmith_completion_tokens_total": "Tokens written by model.",
    "tunesmith_finished_total": "Answers by model and reason to end.",
}
_HISTOGRAMS = {
    "tunesmith_first_token_seconds": "From a request's arrival to its first token.",
    "tunesmith_request_seconds": "From a request's arrival to the end of its answer.",
}
_GAUGES = {
    "tunesmith_waiting_requests": "Requests that no token was computed for yet.",
    "tunesmith_running_requests": "Answers being written: the size of the batch.",
    "tunesmith_cache_tokens": "Tokens that the cache has room for.",
    "tunesmith_adapters": "Adapters in memory.",
}


class Metrics:
    """Counters and histograms; may be written and read from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Labels], float] = {}
        self._buckets = {name: [0] * (len(_SECONDS) + 1) for name in _HISTOGRAMS}
        self._sums = dict.fromkeys(_HISTOGRAMS, 0.0)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add *amount* to the counter *name* with *labels*."""
        assert name in _COUNTERS
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount

    def observe(self, name: str, seconds: float) -> None:
        """Note a duration in the histogram *name*."""
        with self._lock:
            self._buckets[name][bisect_left(_SECONDS, seconds)] += 1
            self._sums[name] += seconds

    def as_text(self, stats: EngineStats) -> str:
        """Return everything, and *stats* of the engine, in Prometheus' text format."""
        gauges = dict(zip(_GAUGES, (stats.waiting, stats.running, stats.cache_tokens, stats.adapters), strict=True))
        with self._lock:
            return "\n".join([*self._counter_lines(), *self._histogram_lines(), *_gauge_lines(gauges), ""])

    def _counter_lines(self) -> Iterator[str]:
        for name, about in _COUNTERS.items():
            yield from _head(name, about, "counter")
            yield from (_line(name, labels, value) for (own, labels), value in self._counts.items() if own == name)

    def _histogram_lines(self) -> Iterator[str]:
        for name, about in _HISTOGRAMS.items():
            yield from _head(name, about, "histogram")
            below = 0
            for bound, number in zip((*map(str, _SECONDS), "+Inf"), self._buckets[name], strict=True):
                below += number
                yield _line(f"{name}_bucket", (("le", bound),), below)
            yield _line(f"{name}_sum", (), self._sums[name])
            yield _line(f"{name}_count", (), below)


def _gauge_lines(values: Mapping[str, float]) -> Iterator[str]:
    for name, about in _GAUGES.items():
        yield from _head(name, about, "gauge")
        yield _line(name, (), values[name])


def _head(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _line(name: str, labels: Labels, value: float) -> str:
    written = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{written}}} {value}" if labels else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
