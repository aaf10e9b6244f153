"""Numbers to the geometry of a small line chart. The template draws it as SVG, in the colours of the page."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400, 200
_LEAST_LOG = 1e-300  # below, the padding of a logarithmic axis would end at 0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 24
_BUCKETS = 160
_LABEL_PX = 46
"""Room that a label of a mark needs."""

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Line:
    """One metric. ``colour`` 0 is the text's own, for the line that the others are parts of."""

    label: str
    points: Points
    colour: int


@dataclass(frozen=True)
class Chart:
    """What to draw. ``level``: a value worth comparing with, and what it means. ``zero``: 0 is part of the axis."""

    title: str
    unit: str
    lines: Sequence[Line]
    log: bool = False
    zero: bool = False
    level: tuple[float, str] | None = None


@dataclass(frozen=True)
class Tick:
    """A position in the picture and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Drawing:
    """A chart as geometry, in units of the view box; ``paths`` belongs to the chart's lines, one each."""

    chart: Chart
    paths: Sequence[str]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    marks: Sequence[Tick]
    level_at: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


class Axis:
    """A range of values on a range of positions."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        self._log, self._start, self._end = log, start, end
        self.low, self.high = low, high
        self._a, self._b = self._scaled(low), self._scaled(high)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def at(self, value: float) -> float:
        """The position of a value, to a tenth of a unit."""
        share = (self._scaled(value) - self._a) / (self._b - self._a)
        return round(self._start + share * (self._end - self._start), 1)

    def ticks(self, count: int, least: float = 0.0) -> list[Tick]:
        """Round values within the range, ``least`` or more apart."""
        values = _decades(self.low, self.high) if self._log else []
        values = values if len(values) > 1 else _round_values(self.low, self.high, count, least)
        return [Tick(self.at(value), label(value)) for value in values]


def draw(chart: Chart, steps: int, marks: Iterable[tuple[int, str]] = ()) -> Drawing | None:
    """Steps 0 to ``steps`` on the x axis. None when no line has a finite point."""
    values = [value for line in chart.lines for _, value in _finite(line.points)]
    if not values:
        return None
    values += [0.0] if chart.zero else []
    values += [chart.level[0]] if chart.level else []
    log = chart.log and min(values) > _LEAST_LOG
    x = Axis(0, max(1, steps), _LEFT, WIDTH - _RIGHT)
    y = Axis(*_padded(min(values), max(values), log=log), HEIGHT - _BOTTOM, _TOP, log=log)
    return Drawing(
        chart,
        [_path(line.points, x, y) for line in chart.lines],
        x.ticks(4, least=1),  # there is no half step
        y.ticks(5),
        _spaced([Tick(x.at(step), text) for step, text in marks]),
        None if chart.level is None else y.at(chart.level[0]),
    )


def label(value: float) -> str:
    """A number as short as an axis wants it: 250k, 1.5M, 0.002, 1e-06."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if sign == 'k' else size):.4g}{sign}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def thinned(points: Points) -> Points:
    """At most two points in each of ``_BUCKETS`` stretches, the least and the greatest, so that no spike is lost."""
    if len(points) <= 2 * _BUCKETS:
        return points
    kept: list[tuple[int, float]] = [points[0]]
    for i in range(_BUCKETS):
        part = points[i * len(points) // _BUCKETS : (i + 1) * len(points) // _BUCKETS]
        finite = [point for point in part if math.isfinite(point[1])] or part[:1]
        kept += sorted({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])})
    return [*kept, points[-1]]


def _path(points: Points, x: Axis, y: Axis) -> str:
    """An SVG path; it breaks off where a value is not finite. A point without neighbours becomes a dot."""
    runs: list[list[str]] = [[]]
    for step, value in thinned(points):
        if math.isfinite(value):
            runs[-1].append(f"{x.at(step):g} {y.at(value):g}")
        elif runs[-1]:
            runs.append([])
    return "".join(f"M{'L'.join(run)}" if len(run) > 1 else f"M{run[0]}h0" for run in runs if run)


def _finite(points: Points) -> list[tuple[int, float]]:
    return [point for point in points if math.isfinite(point[1])]


def _padded(low: float, high: float, *, log: bool) -> tuple[float, float]:
    if log:
        room = max(1.15, (high / low) ** 0.05)
        return low / room, high * room
    room = 0.06 * (high - low)
    if room <= 1e-9 * max(abs(low), abs(high)):  # one value: it goes into the middle
        room = 0.5 * abs(high) or 1.0
    return low - room, high + room


def _round_values(low: float, high: float, count: int, least: float) -> list[float]:
    raw = max(least, (high - low) / count)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1e3 else (1, 3) if high / low > 30 else (1, 2, 5)
    return [v for e in exponents for f in factors if low <= (v := float(f"{f}e{e}")) <= high]


def _spaced(marks: Sequence[Tick]) -> list[Tick]:
    """Labels that would lie on each other are left out; their lines stay."""
    shown: list[Tick] = []
    for mark in marks:
        near = any(other.text and abs(other.at - mark.at) < _LABEL_PX for other in shown)
        shown.append(Tick(mark.at, "" if near else mark.text))
    return shown
