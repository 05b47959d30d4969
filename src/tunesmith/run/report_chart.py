"""Line charts as plain geometry: the report's template draws them, this file decides where things go.

The drawing is stretched to the width of the page, so lines live on a canvas of 1000 by 1000 (y grows downwards, as in
SVG), and labels, which must not be stretched, carry their position in percent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

Point = tuple[float, float]

CANVAS = 1000
MOST_COLUMNS = 300  # more than this cannot be told apart, and makes the page heavy
FEWEST_SMOOTHED = 10


@dataclass(frozen=True)
class Tick:
    """A label on an axis: its distance from the left or the top in percent, and its text."""

    position: float
    label: str


@dataclass(frozen=True)
class Column:
    """A vertical strip of the canvas and what to say when the pointer is over it."""

    x: float
    width: float
    title: str


@dataclass(frozen=True)
class Dot:
    """One marked measurement and what to say when the pointer is over it."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws; paths are SVG path data."""

    raw: str
    smooth: str
    dotted: str
    dots: tuple[Dot, ...]
    columns: tuple[Column, ...]
    marks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def draw_chart(
    points: Sequence[Point],
    dots: Sequence[Point] = (),
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
    smoothed: bool = True,
) -> Chart | None:
    """Return a chart of *points* (step, value), smoothed too; *dots* joined by a line; and vertical *marks*.

    Values that are not finite are left out; with fewer than two points there is nothing to draw.
    """
    points, dots = finite(points), finite(dots)
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    steps = [x for x, _ in (*points, *dots)]
    values = [y for _, y in (*points, *dots)]
    left, right = min(steps), max(steps)
    y_values = round_ticks(min(0.0, *values) if from_zero else min(values), max(values), 5)
    low, high = y_values[0], y_values[-1]

    def place(point: Point) -> Point:
        x, y = point
        return one_decimal((x - left) / (right - left) * CANVAS), one_decimal((high - y) / (high - low) * CANVAS)

    def percent(step: float) -> float:
        return round(place((step, low))[0] * 100 / CANVAS, 2)

    buckets = split(points, MOST_COLUMNS)
    means = smooth_points(points) if smoothed and len(points) >= FEWEST_SMOOTHED else []
    x_values = [x for x in round_ticks(left, right, 6) if left <= x <= right and x == int(x)]
    return Chart(
        raw=path([p for bucket in buckets for p in extremes(bucket)], place),
        smooth=path([bucket[-1] for bucket in split(means, MOST_COLUMNS)], place),
        dotted=path(dots, place),
        dots=tuple(Dot(*place(dot), bucket_title([dot])) for dot in dots),
        columns=columns(buckets, place),
        marks=tuple(Tick(percent(x), label) for x, label in marks if left < x < right),
        x_ticks=tuple(Tick(percent(x), tick_label(x, 1)) for x in x_values),
        y_ticks=tuple(
            Tick(round((high - y) / (high - low) * 100, 2), tick_label(y, y_values[1] - y_values[0])) for y in y_values
        ),
    )


def finite(points: Sequence[Point]) -> list[Point]:
    """Return the points without those whose value is infinite or not a number, in order of their steps."""
    return sorted((x, y) for x, y in points if math.isfinite(y))


def smooth_points(points: Sequence[Point]) -> list[Point]:
    """Return the mean over a twentieth of the run around each point; centred, so that it does not lag behind."""
    half = max(len(points) // 40, 2)
    sums = [0.0, *accumulate(y for _, y in points)]
    means = []
    for index, (x, _) in enumerate(points):
        start, end = max(index - half, 0), min(index + half + 1, len(points))
        means.append((x, (sums[end] - sums[start]) / (end - start)))
    return means


def split(points: Sequence[Point], most: int) -> list[Sequence[Point]]:
    """Return the points in at most *most* runs of neighbours."""
    size = max(math.ceil(len(points) / most), 1)
    return [points[start : start + size] for start in range(0, len(points), size)]


def extremes(bucket: Sequence[Point]) -> list[Point]:
    """Return the lowest and the highest of neighbouring points, so that a thinned line keeps its spikes."""
    return sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})


def columns(buckets: Sequence[Sequence[Point]], place: Callable[[Point], Point]) -> tuple[Column, ...]:
    """Return one strip per bucket; neighbours meet halfway, so that the pointer is always over one."""
    centres = [place(((bucket[0][0] + bucket[-1][0]) / 2, 0))[0] for bucket in buckets]
    middles = [(a + b) / 2 for a, b in pairwise(centres)]
    edges = [0.0, *middles, float(CANVAS)]
    return tuple(
        Column(one_decimal(start), one_decimal(end - start), bucket_title(bucket))
        for bucket, (start, end) in zip(buckets, pairwise(edges), strict=True)
    )


def bucket_title(bucket: Sequence[Point]) -> str:
    """Return ``120: 2.31``, or for several points ``120-129: 2.2-2.4`` with en dashes."""
    lowest, highest = min(y for _, y in bucket), max(y for _, y in bucket)
    if len(bucket) == 1:
        return f"{bucket[0][0]:g}: {lowest:.4g}"
    return f"{bucket[0][0]:g}–{bucket[-1][0]:g}: {lowest:.4g}–{highest:.4g}"


def path(points: Sequence[Point], place: Callable[[Point], Point]) -> str:
    """Return SVG path data through the points; empty for none."""
    return "".join(f"{'L' if i else 'M'}{x:.1f},{y:.1f}" for i, (x, y) in enumerate(map(place, points)))


def one_decimal(value: float) -> float:
    """Return *value* as precise as a screen can show."""
    return round(value, 1)


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about *count* evenly spaced round numbers (1, 2 or 5 times a power of ten) that enclose both ends."""
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12 - math.floor(math.log10(step))) for n in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """Return *value* with as many digits as ticks *step* apart need: ``0.25``, ``12k``, ``5e-5``."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if step < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.{max(0, math.ceil(-math.log10(step) - 1e-9))}f}"
