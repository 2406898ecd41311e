"""From numbers to coordinates: the axes, curves, and bars that report.html draws.

Coordinates are units of an SVG viewBox, which the page scales to the width of a column. y increases downwards.
"""

import math
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 400, 240  # of a chart with axes
LEFT, RIGHT, TOP, BOTTOM = 46, 380, 22, 200  # of the area between its axes
MAX_POINTS = 300  # of a curve
MAX_MARKERS = 30  # of a curve; with more points, only the line is drawn
LOG_RATIO = 30  # losses get a logarithmic axis if the largest is this many times the smallest
CHARACTER = 7.5  # width of a character, about
MAX_NAME = 18  # characters of a name beside a bar; the tooltip has all


# ---------------------------------------------------------------------------------------------------------
# Axes


@dataclass(frozen=True)
class Axis:
    """Maps the values low to high to the coordinates start to end."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[tuple[float, str]]  # coordinate and label
    is_log: bool = False

    def position(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


def round_step(span: float, num_steps: int) -> float:
    """The smallest step 1, 2 or 5 x 10^n such that num_steps steps cover the span."""
    power = 10 ** math.floor(math.log10(span / num_steps))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit * num_steps >= span * (1 - 1e-9))


def format_tick(value: float, step: float) -> str:
    """1200000 -> 1.2M, 15000 -> 15k, 0.25 -> 0.25, 0.00015 -> 1.5e-4. Ticks `step` apart need these decimals."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * (10 if suffix == "k" else 1):  # 1,000 to 9,999 are written in full
            return f"{value / unit:.{_decimals(step / unit)}f}{suffix}"
    if 0 < abs(value) < 1e-3:
        digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(step) + 1e-9)
        return f"{value:.{max(0, digits)}e}".replace("e-0", "e-")
    return f"{value:.{_decimals(step)}f}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def linear_axis(low: float, high: float, start: float, end: float, num_ticks: int = 5, widen: bool = True) -> Axis:
    """An axis with ticks at round numbers. widen: from the tick at or below `low` to the one at or above `high`."""
    if high - low < 0.02 * high or high == low:  # a narrower axis would need labels of many digits
        low, high = (max(0.0, low - 0.05 * high), high * 1.05) if high > 0 else (low, low + 0.1)
    step = round_step(high - low, num_ticks)
    first, last = low / step, high / step
    first, last = (math.floor(first + 1e-9), math.ceil(last - 1e-9)) if widen else (math.ceil(first), math.floor(last))
    if widen:
        low, high = first * step, last * step
    axis = Axis(low, high, start, end, [])
    axis.ticks.extend((axis.position(i * step), format_tick(i * step, step)) for i in range(first, last + 1))
    return axis


def log_axis(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis with ticks at 1, 2, 5, 10, ..., or at powers of ten or of 100, ... if those are too many."""
    decades = math.log10(high / low)
    digits = (1, 2, 5) if decades < 2.5 else (1,)
    last, distance = math.ceil(math.log10(high)), 1 + int(decades / 8)
    exponents = range(last, math.floor(math.log10(low)) - distance, -distance)[::-1]
    values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    low = max([value for value in values if value <= low * (1 + 1e-9)], default=low)
    high = min([value for value in values if value >= high * (1 - 1e-9)], default=high)
    axis = Axis(low, high, start, end, [], is_log=True)
    values = [value for value in values if low <= value <= high]
    axis.ticks.extend(
        (axis.position(value), format_tick(value, 10 ** math.floor(math.log10(value)))) for value in values
    )
    return axis


# ---------------------------------------------------------------------------------------------------------
# Curves over steps


class Curve(NamedTuple):
    number: int  # from 1: its color, dashes and markers
    name: str
    path: str  # M x,y L x,y ...
    markers: list[tuple[float, float, str]]  # x, y, tooltip


class LineChart(NamedTuple):
    title: str
    x: Axis
    y: Axis
    curves: list[Curve]
    best: tuple[float, int] | None  # x and step of the best model


def thin(points: list, max_points: int = MAX_POINTS) -> list:
    """At most max_points of (step, value): the first, the last, and of equal stretches the lowest and the highest."""
    if len(points) <= max_points:
        return points
    values = np.array([value for _, value in points])
    keep = {0, len(points) - 1}
    for stretch in np.array_split(np.arange(1, len(points) - 1), (max_points - 2) // 2):
        keep |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    return [points[i] for i in sorted(keep)]


def line_chart(title: str, points_of: dict[str, list], best_step: int = 0, log: bool = False) -> LineChart | None:
    """points_of: name -> [(step, value), ...]. log: allow a logarithmic axis. None if there are no points."""
    names = list(points_of)
    points_of = {name: thin(points) for name, points in points_of.items() if points}
    if not points_of:
        return None
    steps = [step for points in points_of.values() for step, _ in points] + [best_step]
    values = [value for points in points_of.values() for _, value in points]
    low, high = min(values), max(values)
    is_log = log and low > 0 and high / low >= LOG_RATIO
    y = log_axis(low, high, BOTTOM, TOP) if is_log else linear_axis(low, high, BOTTOM, TOP)
    x = linear_axis(0, max(1, *steps), LEFT, RIGHT, num_ticks=min(5, max(1, *steps)), widen=False)
    curves = []
    for name, points in points_of.items():
        places = [(x.position(step), y.position(value)) for step, value in points]
        path = "M" + "L".join(f"{left:g},{top:g}" for left, top in places)
        notes = [f"{name} {value:.4f} at step {step:,}" for step, value in points]
        markers = [(*place, note) for place, note in zip(places, notes)] if len(points) <= MAX_MARKERS else []
        curves.append(Curve(names.index(name) + 1, name, path, markers))
    best = (x.position(best_step), best_step) if best_step else None
    return LineChart(title + (" (log scale)" if is_log else ""), x, y, curves, best)


def charts_of_run(curves: dict[str, list], best_step: int) -> list[LineChart]:
    """The charts of a run from its scalars by tag. best_step: of the best model; 0 for none."""
    losses = {"training": curves.get("train/loss", []), "validation": curves.get("eval/loss", [])}
    names = ("f1", "precision", "recall", "accuracy")
    scores = {name: curves.get(f"eval/{name}", []) for name in names}
    found = [line_chart("Loss", losses, best_step, log=True), line_chart("Scores on validation", scores, best_step)]
    return [chart for chart in found if chart]


# ---------------------------------------------------------------------------------------------------------
# Bars by type


class Bar(NamedTuple):
    value: float
    end: float  # x coordinate
    whisker: tuple[float, float] | None  # x coordinates of the interval


class BarRow(NamedTuple):
    name: str
    label: str  # the name, shortened to the space beside the bars
    support: int
    bars: list[Bar]


class BarChart(NamedTuple):
    x: Axis  # of scores, 0 to 1
    rows: list[BarRow]


def shortened(text: str, max_width: int = MAX_NAME) -> str:
    """Cuts the middle of a text that takes more columns. East Asian characters take two columns."""
    if 2 * len(text) <= max_width or sum(map(_columns, text)) <= max_width:
        return text
    head = text[: _fitting(text, max_width // 2)]
    tail = text[::-1][: _fitting(text[::-1], max_width - max_width // 2 - 1)][::-1]
    return f"{head}…{tail}"


def _fitting(text: str, max_width: int) -> int:
    """The number of characters at the beginning of a text that take at most max_width columns."""
    return int((np.cumsum([_columns(character) for character in text]) <= max_width).sum())


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def bar_chart(rows: dict[str, tuple[int, list[dict]]], end: float) -> BarChart:
    """Type -> its support, and a score of each run: {"f1": ..., and maybe "f1_ci95": [low, high]}.

    The largest support comes first. end: x coordinate of the score 1.
    """
    ordered = sorted(rows.items(), key=lambda row: -row[1][0])
    labels = [shortened(name) for name, _ in ordered]
    columns = [sum(map(_columns, label)) for label in labels]
    x = linear_axis(0, 1, 10 + CHARACTER * max(columns, default=0), end)
    chart = BarChart(x, [])
    for label, (name, (support, scores)) in zip(labels, ordered):
        bars = []
        for score in scores:
            interval = score.get("f1_ci95")
            whisker = (x.position(interval[0]), x.position(interval[1])) if interval else None
            bars.append(Bar(score["f1"], x.position(score["f1"]), whisker))
        chart.rows.append(BarRow(name, label, support, bars))
    return chart


# ---------------------------------------------------------------------------------------------------------
# Scores of predictions against the share of correct ones


class Bubble(NamedTuple):
    x: float
    y: float
    radius: float
    expected: float  # y where the share correct equals the mean score
    note: str


def reliability_chart(bins: list) -> tuple[Axis, Axis, list[Bubble]]:
    """Bins with count, mean_score, accuracy -> axes and bubbles, whose area is proportional to the count."""
    x, y = linear_axis(0, 1, LEFT, RIGHT), linear_axis(0, 1, BOTTOM, TOP)
    most = max([item.count for item in bins], default=1)
    bubbles = []
    for item in sorted(bins, key=lambda item: -item.count):  # small bubbles are drawn above large ones
        note = f"{item.count:,} with scores {item.scores}: mean {item.mean_score:.4f}, correct {item.accuracy:.4f}"
        radius = round(max(2.5, 14 * math.sqrt(item.count / most)), 1)
        bubbles.append(
            Bubble(x.position(item.mean_score), y.position(item.accuracy), radius, y.position(item.mean_score), note)
        )
    return x, y, bubbles
